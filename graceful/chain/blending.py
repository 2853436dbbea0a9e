"""One teacher from reference runs and old versions: a blend of their tempered probabilities. Pure torch.

    q = (1 - sum_k w_k) r + sum_k w_k p_k        r = softmax(z_ref / T), z_ref the mean logits of the reference runs

p_k is the old version k's distribution over the classes of the new version. Classes that the new version has no more
are left out of its softmax. Of the new version's classes, let U be those that it does not know: they have the
probability of the reference, and the old version divides the rest among those that it knows:

    p_k(c) = r(c)                                               c in U
    p_k(c) = (1 - r(U)) softmax over the known classes (z_k / T)    otherwise

so that p_k and q are distributions, and a version that knows none of the classes has those of the reference. Where
nothing is known of a sample, the old version's share goes to the reference. Everything is computed as logarithms, in
float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Known:
    """The classes that a new and an old version both know.

    Attributes:
        new: [S] labels of the new version.
        old: [S] labels of the old one, in the same order.
    """

    new: Tensor
    old: Tensor

    @classmethod
    def of(cls, label_map: Tensor) -> Known:
        """Return the classes in common, from [C_new] the old label of each class or -1, see `chain.label_map`."""
        new = (label_map >= 0).nonzero().flatten()
        return cls(new=new, old=label_map[new])


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Return log softmax(logits / temperature), float64."""
    return torch.log_softmax(logits.double() / temperature, -1)


def completed(reference: Tensor, old: Tensor, known: Known, *, temperature: float) -> Tensor:
    """Return log p_k over the classes of the new version, [B, C].

    Args:
        reference: [B, C] log r.
        old: [B, C_old] logits of the old version.
        known: Which classes both know.
        temperature: T.
    """
    if not len(known.new):
        return reference
    result = reference.clone()
    rest = torch.logsumexp(reference[:, known.new], 1, keepdim=True)
    result[:, known.new] = rest + tempered(old[:, known.old], temperature)
    return result


def blended(reference: Tensor, old: Sequence[Tensor], shares: Sequence[Tensor | float]) -> Tensor:
    """Return log q, [B, C].

    Args:
        reference: [B, C] log r.
        old: [B, C] log p_k of each old version.
        shares: The shares of each old version, w_k: one number, or [B]. They add up to less than 1.
    """
    columns = [torch.as_tensor(share, dtype=reference.dtype).reshape(-1, 1) for share in shares]
    total = reference + torch.log1p(-sum(columns, torch.zeros(1, 1, dtype=reference.dtype)))
    for version, share in zip(old, columns, strict=True):
        total = torch.logaddexp(total, version + share.log())
    return total


def as_logits(log_q: Tensor, *, temperature: float) -> Tensor:
    """Return logits with the mean 0 whose softmax at the temperature is q; finite also where q underflows."""
    floor = math.log(torch.finfo(torch.float32).tiny)
    logits = temperature * log_q.clamp(min=floor)
    return logits - logits.mean(-1, keepdim=True)
