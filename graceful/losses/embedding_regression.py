"""Embedding regression: pull each new embedding to the old one of the same sample. Runs in workers.

    cosine:  D = 1 - cos(P f_new, f_old)
    l2:      D = || n(P f_new) - n(f_old) ||^2 = 2 (1 - cos)          n: normalise, P: align

Needs no labels, so it also covers classes the old version never saw. A vector of zero length has cosine 0 with
anything: D = 1 or 2, no gradient.

Source: feature regression baselines of Shen et al., Towards backward-compatible representation learning (CVPR 2020).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from graceful.losses.base import Loss, Merge, PerSample, Reading
from graceful.sections import Weight

if TYPE_CHECKING:
    from torch import Tensor

    from graceful.losses.ops.pair import Pair
    from graceful.models.base import Outputs


class EmbeddingRegression(Loss):
    """Pull new embeddings to the old ones, sample by sample."""

    kind: Literal["embedding_regression"] = "embedding_regression"
    weight: Weight = 5.0
    """Factor of this loss beside the task's."""
    distance: Literal["cosine", "l2"] = "cosine"
    """cosine: direction only; l2: squared distance."""
    encoder: Annotated[Literal["query", "gallery"], Field(exclude_if=lambda encoder: encoder == "query")] = "query"
    """Which encoder of the old version made the embeddings to compare with, where its learner has two: gallery pulls
    new queries to what its index holds, and several such terms do not merge."""

    order: ClassVar[int] = 40
    search_name: ClassVar[str] = "regression"
    search_range: ClassVar[tuple[float, float] | None] = (0.5, 10.0)
    aligns_embeddings: ClassVar[bool] = True
    query_weight: ClassVar[float | None] = 10.0
    reads_labels: ClassVar[bool] = False

    @property
    def reads(self) -> frozenset[Reading]:
        """Return what the loss reads: embeddings of one encoder alone; labels are not needed."""
        return frozenset({"embedding" if self.encoder == "query" else "gallery"})

    def compare(self, pair: Pair, constants: tuple[Tensor, ...]) -> PerSample:
        """Return the distance of the embeddings; every sample with an old embedding participates."""
        new, old = pair.outputs.embedding, pair.old_embedding if self.encoder == "query" else pair.old_gallery_embedding
        return PerSample(embedding_regression(new, old, distance=self.distance), pair.present)

    @property
    def merge(self) -> Merge | None:
        """Return the mean of directions: distances from several are one from their mean, up to a constant."""
        return Merge(form="embedding") if self.encoder == "query" else None

    def compare_merged(self, outputs: Outputs, target: Tensor) -> Tensor:
        """Return the distance from the mean direction."""
        from graceful.losses.ops.alignment import align, normalise

        direction = normalise(align(outputs.embedding, size=target.shape[-1]))
        return regression_to_mean(direction, target) * (2.0 if self.distance == "l2" else 1.0)


def embedding_regression(new: Tensor, old: Tensor, *, distance: Literal["cosine", "l2"] = "cosine") -> Tensor:
    """Return the distance of the aligned, normalised embeddings.

    Args:
        new: [B, d_new] embeddings, not normalised.
        old: [B, d_old] embeddings, constant.
        distance: See above.

    Returns:
        [B], fp32 whatever the inputs (fp64 for fp64), in [0, 2] or [0, 4].
    """
    import torch

    from graceful.losses.ops.alignment import align, has_direction, normalise

    aligned, old = align(new, size=old.shape[-1]), old.detach()
    squared = (normalise(aligned) - normalise(old)).square().sum(-1)
    # Half the squared distance of unit vectors is 1 - cos without its cancellation near 0.
    squared = torch.where(has_direction(aligned) & has_direction(old), squared, 2.0)
    return squared if distance == "l2" else 0.5 * squared


def regression_to_mean(direction: Tensor, target: Tensor) -> Tensor:
    """Return `1 - f . fbar`, the merged embedding regression.

    Args:
        direction: [B, d] new embeddings of unit length (or zeros).
        target: [B, d] mean direction, constant.

    Returns:
        [B] in [0, 2].
    """
    return 1.0 - (direction * target.to(direction).detach()).sum(-1)
