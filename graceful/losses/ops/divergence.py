"""Distances between the logits of two models, in two forms: tempered divergence and logit matching. Runs in workers.

    KL:  D = tau^2 * KL(softmax(z_old / tau) || softmax(z_new / tau))
    LM:  D = (1 / 2C) * || centre(z_new - z_old) ||^2          the limit of KL for tau -> infinity

Both forms ignore a constant added to all logits of a sample. C = 0 (no shared class) gives 0, C = 1 gives 0.

Source: Yan et al., Positive-congruent training (CVPR 2021); the order of the divergence is that of working code
(old first); LM is centred and scaled here so that one range of weights serves both forms; the evaluation of KL is ours.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from graceful.losses.ops.reduction import accurate

_SERIES_BELOW = 0.5
_LOGSUMEXP_ABOVE = 30.0
_COEFFICIENTS = tuple(1.0 / math.factorial(power) for power in range(9, 1, -1))


def kl_divergence(new: Tensor, old: Tensor, *, temperature: float) -> Tensor:
    """Return the tempered divergence from the old outputs, times temperature squared.

    At high temperature both distributions are nearly uniform and the textbook difference of log-softmaxes cancels:
    single samples are wrong by percents to multiples in fp32 and negative in bf16. With `u = d - sum_c q_c d_c` for
    `d = (z_new - z_old) / tau`, `KL = log(1 + sum_c q_c (exp(u_c) - 1 - u_c))` has no negative terms.

    Args:
        new: [B, C] logits.
        old: [B, C] logits, constant: no gradient flows into them.
        temperature: tau > 0.

    Returns:
        [B], fp32 whatever the inputs (fp64 for fp64); never negative beyond rounding. Finite, with finite gradients,
        for logits up to +-65000.
    """
    new, old = accurate(new), accurate(old).detach()
    if new.shape[-1] == 0:
        return new.sum(-1)
    divergence: Tensor = _Divergence.apply(new, old, temperature)  # type: ignore[no-untyped-call]
    return divergence


class _Divergence(torch.autograd.Function):
    """`tau^2 KL` with its gradient in closed form: `tau * (p - q)`, where `p = q * exp(u - KL)`."""

    @staticmethod
    def forward(ctx: Any, new: Tensor, old: Tensor, temperature: float) -> Tensor:
        log_q = torch.log_softmax(old / temperature, -1)
        q = log_q.exp()
        d = (new - old) / temperature
        u = d - (q * d).sum(-1, keepdim=True)
        small_divergence = torch.log1p((q * _excess(u)).sum(-1))
        divergence = torch.where(u.amax(-1) > _LOGSUMEXP_ABOVE, torch.logsumexp(log_q + u, -1), small_divergence)
        ctx.save_for_backward(log_q, q, u - divergence.unsqueeze(-1))
        ctx.temperature = temperature
        return temperature**2 * divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        log_q, q, log_ratio = ctx.saved_tensors
        far = log_ratio > _LOGSUMEXP_ABOVE  # exp could overflow, while p itself is at most 1
        difference = torch.where(far, (log_q + log_ratio).exp() - q, q * torch.expm1(log_ratio))
        return gradient.unsqueeze(-1) * ctx.temperature * difference, None, None


def _excess(u: Tensor) -> Tensor:
    """Return `exp(u) - 1 - u` elementwise, without cancellation, up to the bound above which it is not used."""
    series = torch.full_like(u, _COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        series.mul_(u).add_(coefficient)
    bounded = u.clamp(max=_LOGSUMEXP_ABOVE)
    return torch.where(u.abs() < _SERIES_BELOW, series.mul_(u).mul_(u), torch.expm1(bounded) - bounded)


def logit_matching(new: Tensor, old: Tensor) -> Tensor:
    """Return half the mean squared distance of centred logits.

    Args:
        new: [B, C] logits.
        old: [B, C] logits, constant.

    Returns:
        [B], fp32 whatever the inputs (fp64 for fp64).
    """
    difference = accurate(new) - accurate(old).detach()
    if difference.shape[-1] == 0:
        return difference.sum(-1)
    centred = difference - difference.mean(-1, keepdim=True)
    return 0.5 * centred.square().mean(-1)
