"""A check of one loss: its values, gradients and weights on random batches. Imports torch."""

from __future__ import annotations

import torch

from graceful.chain import OldOutputs
from graceful.losses import registry
from graceful.losses.base import Loss
from graceful.losses.ops.pair import OldVersion
from graceful.models.base import Outputs
from graceful.spec import Compatibility
from graceful.training.objective import Objective

CLASSES = ("cat", "dog", "owl")
SIZE = 8


def check(loss: Loss, *, batch: int = 16, seed: int = 0) -> torch.Tensor:
    """Compute a loss against one predecessor, as training does.

    Args:
        loss: With the options to be checked.
        batch: Samples.
        seed: The seed of the random outputs.

    Returns:
        The value, a scalar.

    Raises:
        AssertionError: The class is unfit, a value or gradient is not finite, no gradient reaches the new version, or a
            sample about which nothing is known changes the value.
    """
    kind = registry.kind_of(type(loss))
    reason = registry.fault(type(loss), kind, {})
    assert reason is None, f"{kind}, {reason}"
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(batch) % len(CLASSES)
    logits, embedding = (torch.randn(batch, size, generator=generator) for size in (len(CLASSES), SIZE))
    old = OldOutputs(
        logits + torch.randn(logits.shape, generator=generator),
        embedding + torch.randn(embedding.shape, generator=generator),
        torch.arange(batch) > 0,  # nothing is known about the first sample
    )
    value, gradients = _value(loss, logits, embedding, labels, old)
    assert torch.isfinite(value), f"{kind}: the value is {value.item()}"
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients), f"{kind}: a gradient is not finite"
    assert any(bool(gradient.any()) for gradient in gradients), f"{kind}: no gradient reaches the new version"
    changed = OldOutputs(old.logits.clone(), old.embedding.clone(), old.present)
    changed.logits[0], changed.embedding[0] = float("nan"), float("nan")
    again, _ = _value(loss, logits, embedding, labels, changed)
    assert torch.equal(value, again), f"{kind}: outputs of a sample that the old version does not know change the value"
    return value


def _value(
    loss: Loss, logits: torch.Tensor, embedding: torch.Tensor, labels: torch.Tensor, old: OldOutputs
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return what the loss adds to the task's, and its gradients by the new version's outputs."""
    leaves = [embedding.clone().requires_grad_(), logits.clone().requires_grad_()]
    totals = []
    for losses in ((loss,), ()):
        objective = Objective(Compatibility.model_construct(losses=losses), CLASSES, [_predecessor()])
        totals.append(objective(Outputs(*leaves), labels, [old] if losses else [None]).total)
    value = totals[0] - totals[1]
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return value.detach(), [torch.zeros(1) if gradient is None else gradient for gradient in gradients]


def _predecessor() -> OldVersion:
    torch.manual_seed(0)
    return OldVersion(
        name="v1",
        classes=CLASSES,
        embedding_size=SIZE,
        head=torch.nn.Linear(SIZE, len(CLASSES)).requires_grad_(False),
        correct_share=0.7,
        prototypes=torch.eye(len(CLASSES), SIZE),
    )
