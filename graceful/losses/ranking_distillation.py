"""Ranking distillation: a new query must order a batch of gallery embeddings as the old query does. Runs in workers.

    D = KL( softmax(cos(f_old, F_old) / tau)  ||  softmax(cos(P f_new, F_old) / tau) )        P: align

F_old are the old embeddings of the batch, the sample's own left out. Needs no labels. Only order and distances within
the batch count, so it is weaker than `embedding_regression` alone and is meant beside it.

Source: asymmetric retrieval by ranking consistency, e.g. Suma and Tolias (2023) and Wu et al. (2022).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from graceful.losses.base import Loss, PerSample, Reading
from graceful.sections import Weight

if TYPE_CHECKING:
    from torch import Tensor

    from graceful.losses.ops.pair import Pair


class RankingDistillation(Loss):
    """Make new queries order the old embeddings of a batch as old queries do."""

    kind: Literal["ranking_distillation"] = "ranking_distillation"
    weight: Weight = 1.0
    """Factor of this loss beside the task's."""
    temperature: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05
    """Divides cosines before the softmax: small values let the nearest few decide."""

    order: ClassVar[int] = 45
    search_name: ClassVar[str] = "ranking"
    aligns_embeddings: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = False

    @property
    def reads(self) -> frozenset[Reading]:
        """Return what the loss reads: embeddings alone."""
        return frozenset({"embedding"})

    def compare(self, pair: Pair, constants: tuple[Tensor, ...]) -> PerSample:
        """Return the divergence of each sample's ranking; samples without an old embedding rank nothing."""
        values = ranking_distillation(
            pair.outputs.embedding, pair.old_embedding, present=pair.present, temperature=self.temperature
        )
        return PerSample(values, pair.present)


def ranking_distillation(new: Tensor, old: Tensor, *, present: Tensor, temperature: float) -> Tensor:
    """Return the divergence of the orders in which new and old queries see the old embeddings of the batch.

    Args:
        new: [B, d_new] embeddings, not normalised.
        old: [B, d_old] embeddings, constant.
        present: [B] bool: which old embeddings are known; only these are ranked.
        temperature: tau.

    Returns:
        [B], fp32 at least, at least 0; 0 where there is nothing else to rank.
    """
    import torch
    from torch.nn import functional as F

    from graceful.losses.ops.alignment import align, normalise

    gallery = normalise(old.detach())
    query = normalise(align(new, size=old.shape[-1]))
    itself = torch.eye(len(old), dtype=torch.bool, device=old.device)
    ranked = present.unsqueeze(0) & ~itself
    hidden = torch.finfo(gallery.dtype).min
    wanted, given = (torch.where(ranked, vectors @ gallery.T / temperature, hidden) for vectors in (gallery, query))
    target, logarithms = F.softmax(wanted, dim=1), F.log_softmax(given, dim=1)
    terms = torch.where(ranked, target * (torch.where(ranked, F.log_softmax(wanted, dim=1), 0.0) - logarithms), 0.0)
    return torch.where(ranked.any(1), terms.sum(1), 0.0)
