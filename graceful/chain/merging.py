"""Many predecessors as one target and one weight per sample. Workers run it when they open caches, not in every step.

With W = sum_k w_k, per sample and up to a constant that no gradient sees:

    sum_k w_k LM(z, z_k)          = W LM(z, zbar)            zbar = sum_k w_k z_k / W
    sum_k w_k KL(p_k || p)        = W KL(pbar || p)          pbar = sum_k w_k p_k / W, at the same temperature
    sum_k w_k (1 - f . f_k)       = W (1 - f . fbar)         fbar = sum_k w_k f_k / W, not normalised again

KL targets are kept as logits, `centre(tau log pbar)`, so that a target is always a vector for the one-predecessor loss.
Exact only among predecessors with the same classes in the same order, one temperature, one embedding length. The
dropped constant over W is the conflict index: how much the predecessors disagree about the sample, in units of loss.

Influence (k small products), logit displacement (its dead zone) and focuses that follow the new model do not merge.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from graceful.losses.ops.alignment import normalise

Form = Literal["kl", "lm", "embedding"]


class Merged(NamedTuple):
    """One target for a batch, in place of several predecessors."""

    target: Tensor
    """[B, S] logits over the classes of the group, or [B, d] mean direction."""
    weight: Tensor
    """[B] sum of the predecessors' weights; 0 where none has anything to say, and then the target is 0 too."""


class Mixer:
    """Adds predecessors up, one after the other, in float64; the order changes nothing but rounding.

    Args:
        form: Which of the three sums.
        temperature: tau of `kl`; not read by the others.
    """

    def __init__(self, form: Form, *, temperature: float = 1.0) -> None:
        self._form, self._temperature = form, temperature
        self._weight = self._sum = self._own = torch.zeros((), dtype=torch.float64)
        self._empty = True

    def add(self, outputs: Tensor, weight: Tensor) -> None:
        """Take one predecessor in.

        Args:
            outputs: [B, S] logits in the group's order of classes, or [B, d] embeddings, not normalised; finite
                wherever the weight is above 0. An embedding without direction pulls nowhere, but counts in W.
            weight: [B], not negative.
        """
        weight = weight.double()
        weighted = (weight > 0.0).unsqueeze(-1)
        outputs = torch.where(weighted, outputs.double(), 0.0)
        if self._form == "kl":
            value = torch.log_softmax(outputs / self._temperature, -1)
            self_term = (value.exp() * value).sum(-1)
            shares = weight.clamp(min=torch.finfo(torch.float64).tiny).log()[:, None]
            term = torch.where(weighted, value + shares, -torch.inf)
        else:
            value = normalise(outputs) if self._form == "embedding" else outputs - outputs.mean(-1, keepdim=True)
            self_term = value.square().sum(-1)
            term = weight[:, None] * value
        if self._empty:
            self._weight, self._sum, self._own, self._empty = weight.clone(), term, weight * self_term, False
            return
        self._weight = self._weight + weight
        self._sum = torch.logaddexp(self._sum, term) if self._form == "kl" else self._sum + term
        self._own = self._own + weight * self_term

    def merged(self) -> tuple[Merged, Tensor]:
        """Finish.

        Returns:
            The target in float64, and the conflict index [B]: mean distance of the predecessors to it in units of the
            loss, 0 where they agree or there is none.
        """
        has_weight = self._weight > 0.0
        total = torch.where(has_weight, self._weight, 1.0)
        if self._form == "kl":
            log_mean = torch.where(has_weight[:, None], self._sum - total.log()[:, None], 0.0)
            self_term = (log_mean.exp() * log_mean).sum(-1)
            conflict = self._temperature**2 * (self._own / total - self_term)
            target = self._temperature * (log_mean - log_mean.mean(-1, keepdim=True))
        else:
            target = self._sum / total[:, None]
            spread = self._own / total - target.square().sum(-1)
            conflict = spread if self._form == "embedding" else spread / (2.0 * max(target.shape[-1], 1))
        without_weight = ~has_weight
        return (
            Merged(target.masked_fill(without_weight[:, None], 0.0), self._weight),
            conflict.clamp(min=0.0).masked_fill(without_weight, 0.0),
        )
