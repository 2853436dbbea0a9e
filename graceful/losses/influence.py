"""Influence loss: the frozen old head must classify new embeddings. Runs in workers; prototypes in the driver.

    D = CE( [ h_old(P f_new) | s * cos(P f_new, w_c) for unseen c ], label )          P: align

Classes the old head does not know get prototypes `w_c = normalise(mean of normalise(f_old(x)) over images of c)`. No
forward pass of the old backbone is needed while training. A linear old head sees raw embeddings with its bias, a
cosine head normalises by itself: the head is called as it was trained.

Source: Shen et al., Towards backward-compatible representation learning (CVPR 2020); cosine logits for the
synthesised classes and the shrinkage are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from graceful.losses.base import Loss, PerSample, Reading
from graceful.sections import Positive, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from graceful.losses.ops.pair import OldVersion, Pair


class Influence(Loss):
    """Classify new embeddings with the frozen old head (backward-compatible training)."""

    kind: Literal["influence"] = "influence"
    weight: Weight = 1.0
    """Factor of this loss beside the task's."""
    prototypes: bool = True
    """Synthesise old prototypes for classes the old head does not know."""
    scale: Positive = 16.0
    """Scale of the prototypes' cosine logits."""

    order: ClassVar[int] = 30
    search_range: ClassVar[tuple[float, float] | None] = (0.3, 10.0)
    aligns_embeddings: ClassVar[bool] = True
    query_weight: ClassVar[float | None] = 1.0

    @property
    def reads(self) -> frozenset[Reading]:
        """Return what the loss reads: the head, and prototypes for classes that it does not know."""
        return frozenset({"head", "prototypes"} if self.prototypes else {"head"})

    def constants(self, version: OldVersion, known: Tensor) -> tuple[Tensor, ...]:
        """Return the classifier's output for each label, [C_new], -1: none, and prototypes [U, d_old] behind its head.

        Raises:
            ValueError: The head is not frozen, nothing can classify, or prototypes are missing or have another shape.
        """
        slots, rows = old_classifier(version, known=known, use_prototypes=self.prototypes)
        return (slots,) if rows is None else (slots, rows)

    def compare(self, pair: Pair, constants: tuple[Tensor, ...]) -> PerSample:
        """Return the cross-entropy of the old classifier; samples of classes that it lacks do not participate."""
        from graceful.losses.ops.alignment import align

        slots, *rows = constants
        outputs = slots[pair.labels]
        aligned = align(pair.outputs.embedding, size=pair.version.embedding_size)
        prototypes = rows[0] if rows else None
        values = influence(aligned, outputs, head=pair.version.head, prototypes=prototypes, scale=self.scale)
        return PerSample(values, pair.present & (outputs >= 0))


def influence(
    embedding: Tensor,
    labels: Tensor,
    *,
    head: Callable[[Tensor], Tensor] | None,
    prototypes: Tensor | None = None,
    scale: float = 16.0,
) -> Tensor:
    """Return the cross-entropy of the old classifier on aligned new embeddings.

    Args:
        embedding: [B, d_old] aligned new embeddings, not normalised.
        labels: [B] int64, index into the old head's classes followed by the prototypes; -1: neither knows the class.
        head: Frozen old head, [B, d_old] -> [B, C_old]; None: prototypes alone.
        prototypes: [U, d_old] of unit length; None: the old head alone.
        scale: Scale s of the prototypes' cosine logits.

    Returns:
        [B], fp32 whatever the inputs (fp64 for fp64); 0 where the label is -1, or where there is no classifier at all.
    """
    import torch
    from torch.nn import functional as F

    from graceful.losses.ops.alignment import normalise
    from graceful.losses.ops.reduction import accurate, full_precision

    embedding = accurate(embedding)
    logits = []
    with full_precision(embedding.device):
        if head is not None:
            logits.append(accurate(head(embedding)))
        if prototypes is not None and len(prototypes):
            logits.append(scale * normalise(embedding) @ prototypes.to(embedding).T)
    if not logits:
        return 0.0 * embedding.sum(-1)
    losses = F.cross_entropy(torch.cat(logits, -1), labels.clamp(min=0), reduction="none")
    return torch.where(labels >= 0, losses, 0.0)


def old_classifier(version: OldVersion, *, known: Tensor, use_prototypes: bool) -> tuple[Tensor, Tensor | None]:
    """Put prototypes behind the outputs of the old head.

    Args:
        version: The old version; its prototypes are read only for classes that its head does not know.
        known: [C_new] label map, on the CPU.
        use_prototypes: Whether the spec wants them.

    Returns:
        [C_new] label -> output, -1: none; prototypes [U, d_old] on the CPU, or None.

    Raises:
        ValueError: The head is not frozen, nothing can classify, or prototypes are missing or have another shape.
    """
    import torch
    from torch import nn

    if isinstance(version.head, nn.Module) and any(parameter.requires_grad for parameter in version.head.parameters()):
        raise ValueError(f"the head of {version.name} must be frozen; call chain.freeze on its network first")
    slots = known.clone() if version.head is not None else torch.full_like(known, -1)
    unknown_classes = int((slots < 0).sum())
    if version.head is None and not use_prototypes:
        raise ValueError(f"{version.name} has no head; influence needs the head or prototypes")
    if not use_prototypes or (version.prototypes is None and not unknown_classes):
        return slots, None
    if version.prototypes is None:
        raise ValueError(
            f"{version.name} does not know {unknown_classes} classes and has no prototypes for them; "
            "give OldVersion.prototypes or set influence.prototypes to false"
        )
    expected = (len(slots), version.embedding_size)
    if version.prototypes.shape != expected:
        actual = tuple(version.prototypes.shape)
        raise ValueError(f"prototypes of {version.name} must have shape {expected}, got {actual}")
    rows = version.prototypes.detach().cpu().float()
    chosen = (slots < 0) & rows.isfinite().all(1)
    first = len(version.classes) if version.head is not None else 0
    slots[chosen] = first + torch.arange(int(chosen.sum()))
    return slots, rows[chosen]
