"""Focus: which samples a distillation loss weighs most, normalised to mean 1. Runs in workers.

The weight of a sample is `F_i = (alpha + beta * focus_i) / mean(alpha + beta * focus)`, so that the loss weight says
how much and beta / alpha says where. `all` and `old_correct` depend on old outputs alone: their mean is a number known
before training. `new_incorrect` and `negative_flip` follow the new model: their mean runs, with an explicit state.

No sample weighs more than 20. A predecessor near chance (`near_chance`) has alpha 0 where there is a focus, so that it
pulls only where it is right, and is silent where it never is.

Source: Yan et al., Positive-congruent training (CVPR 2021), focal distillation (old_correct); Echterhoff et al., MUSCLE
(2024) (new_incorrect); the normalisation is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Focus = Literal["all", "old_correct", "new_incorrect", "negative_flip"]

DECAY = 0.99
"""How much of the running moments survives one batch: the mean looks back over about a hundred batches."""


LARGEST = 20.0
"""Bound of one sample's weight after normalisation; only weights without a base (alpha 0) come near it."""


def base_weight(focus: Focus, *, alpha: float, near_chance: bool) -> float:
    """Return the effective alpha: 0 for a predecessor near chance, unless there is no focus."""
    return 0.0 if near_chance and focus != "all" else alpha


def is_dynamic(focus: Focus) -> bool:
    """Return whether the focus follows the new model, so that its mean changes while training."""
    return focus in {"new_incorrect", "negative_flip"}


def raw_weights(focus: Focus, *, alpha: float, beta: float, old_correct: Tensor, new_correct: Tensor) -> Tensor:
    """Weigh samples before normalisation: `alpha + beta * focus_i`, detached.

    Args:
        focus: `all`: no sample is in focus; `old_correct`, `new_incorrect`, `negative_flip`: old right and new wrong.
        alpha: Base weight.
        beta: Additional weight in focus.
        old_correct: [B] bool, False where the old version does not know the label.
        new_correct: [B] bool.

    Returns:
        [B] fp32.
    """
    import torch

    if focus == "all":
        return torch.full(old_correct.shape, alpha, device=old_correct.device)
    chosen = {
        "old_correct": old_correct,
        "new_incorrect": ~new_correct,
        "negative_flip": old_correct & ~new_correct,
    }[focus]
    return alpha + beta * chosen.float()


def static_mean(focus: Focus, *, alpha: float, beta: float, old_correct_share: float) -> float:
    """Return the mean of the raw weights over the training ids that the old version knows.

    Args:
        focus: `all` or `old_correct`.
        alpha: Base weight.
        beta: Additional weight in focus.
        old_correct_share: Share of those ids that the old version gets right, in [0, 1].

    Raises:
        ValueError: A dynamic focus, or a share outside [0, 1].
    """
    if is_dynamic(focus):
        raise ValueError(f"focus {focus} follows the new model and has no static mean; use a running one")
    if focus == "all":
        return alpha
    if not 0.0 <= old_correct_share <= 1.0:
        raise ValueError(f"old_correct_share must be in [0, 1], got {old_correct_share}")
    return alpha + beta * old_correct_share


def batch_moments(weights: Tensor, *, participates: Tensor) -> Tensor:
    """Return the sum and count of the raw weights of a batch, to be added up over workers.

    Args:
        weights: [B] raw weights.
        participates: [B] bool.

    Returns:
        [2] fp32: sum, count.
    """
    import torch

    mask = participates.float()
    return torch.stack([(weights.detach() * mask).sum(), mask.sum()])


def advance(state: Tensor, *, batch: Tensor, decay: float = DECAY) -> Tensor:
    """Take the moments of one batch into the running moments; a batch without participants changes nothing.

    Args:
        state: [..., 2] running sum and count, zeros at the start. This is what a checkpoint keeps.
        batch: [..., 2] moments of the batch, summed over workers, so that all workers keep the same state.
        decay: Share of the state that survives.
    """
    import torch

    return torch.where(batch[..., 1:] > 0.0, decay * state + batch, state)


def normalise(weights: Tensor, *, mean: float | Tensor) -> Tensor:
    """Divide raw weights [B] by their mean, at most 20; mean 0 (nothing ever in focus, alpha 0) gives zeros."""
    import torch

    if isinstance(mean, torch.Tensor):
        return torch.where(mean > 0.0, weights / torch.where(mean > 0.0, mean, 1.0), 0.0).clamp(max=LARGEST)
    return (weights / mean).clamp(max=LARGEST) if mean > 0.0 else torch.zeros_like(weights)


def mean_of(state: Tensor) -> Tensor:
    """Return the running mean [...] of moments [..., 2]; 0 where nothing was counted yet."""
    import torch

    return state[..., 0] / state[..., 1].clamp(min=torch.finfo(state.dtype).tiny)
