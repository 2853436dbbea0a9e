"""Logit displacement (LDI): logits may move by a margin for free, further moves cost. Runs in workers.

    D = mean over c in S of max(0, |z_new,c - z_old,c| - margin)^power

S is all classes or the k classes with the largest old logits, without the label if so asked.

Source: Zhao et al., ELODI: Ensemble logit difference inhibition (2022); here the reference is the old model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from graceful.losses.base import Loss, PerSample, Reading
from graceful.losses.search import Domain, Point, SearchKey, Span, Value
from graceful.sections import Count, Section, Weight

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from graceful.losses.ops.pair import OldVersion, Pair


class LogitDisplacement(Loss):
    """Penalise logits that move further than a margin from the old model's (LDI)."""

    kind: Literal["logit_displacement"] = "logit_displacement"
    weight: Weight = 1.0
    """Factor of this loss beside the task's."""
    margin: Annotated[float, Field(ge=0.0)] = 0.5
    """Displacement that costs nothing."""
    power: Annotated[float, Field(ge=1.0, le=4.0)] = 2.0
    """Exponent of what exceeds the margin."""
    top_k: Count | None = None
    """Only the k largest old logits of each sample; None: all classes."""
    exclude_label: bool = False
    """Leave the true class free to move."""

    order: ClassVar[int] = 20
    search_name: ClassVar[str] = "displacement"
    search_range: ClassVar[tuple[float, float] | None] = (0.1, 10.0)
    compares_outputs: ClassVar[bool] = True

    @property
    def reads(self) -> frozenset[Reading]:
        """Return what the loss reads: logits."""
        return frozenset({"logits"})

    def compare(self, pair: Pair, constants: tuple[Tensor, ...]) -> PerSample:
        """Return the displacement in the shared label space; samples of unknown classes do not participate."""
        excluded = pair.space.shared_labels(pair.labels) if self.exclude_label else None
        options = {"margin": self.margin, "power": self.power}
        values = logit_displacement(
            pair.new_logits, pair.old_logits, **options, top_k=self.top_k, exclude_labels=excluded
        )
        return PerSample(values, pair.participates)

    def never_counts(self, version: OldVersion) -> bool:
        """Return whether no class is known."""
        return version.known_share == 0.0

    def too_few_logits(self, top: int) -> str | None:
        """Return what to write instead where it reads more logits than caches keep."""
        return f"top_k at most {top}" if self.top_k is None or self.top_k > top else None

    @classmethod
    def search_keys(cls) -> dict[str, SearchKey]:
        """Return the key of the margin."""
        doc = "Of logit_displacement; None: [0, 1]."
        return {"margin": SearchKey(annotation=tuple[float, float], doc=doc, largest=100.0)}

    @classmethod
    def search_options(cls, written: Loss | None, space: Section) -> dict[str, Domain]:
        """Return the range of the margin."""
        return {"margin": Span.of(getattr(space, "margin", None), (0.0, 1.0), log=False)}

    @classmethod
    def known_points(cls, options: Mapping[str, Domain]) -> tuple[Point, ...]:
        """Return a weight that has worked beside strong reference runs."""
        return ({"displacement": 3.0, "margin": 0.5, "reference": 30.0},)

    def search_values(self) -> dict[str, Value]:
        """Return the search point of this section."""
        return {"margin": self.margin}

    @classmethod
    def at(cls, point: Point, options: dict[str, Any]) -> Loss:
        """Build the loss with the margin of the point."""
        return cls(**{**options, "margin": float(point["margin"])})


def logit_displacement(
    new: Tensor,
    old: Tensor,
    *,
    margin: float,
    power: float = 2.0,
    top_k: int | None = None,
    exclude_labels: Tensor | None = None,
) -> Tensor:
    """Return the mean displacement beyond the margin.

    Args:
        new: [B, C] logits.
        old: [B, C] logits, constant.
        margin: Displacement that is free, >= 0.
        power: >= 1.
        top_k: Size of S, chosen by old logits along the class axis after the label has left; None or >= C: all.
        exclude_labels: [B] int64 labels to leave out of S (-1: nothing to leave out); None: labels stay in.

    Returns:
        [B], fp32 whatever the inputs (fp64 for fp64). S empty (C = 0, or C = 1 without its label): 0.
    """
    import torch

    from graceful.losses.ops.reduction import accurate

    new, old = accurate(new), accurate(old).detach()
    if new.shape[-1] == 0:
        return new.sum(-1)
    chosen = _chosen_classes(old, top_k=top_k, exclude_labels=exclude_labels)
    excess = ((new - old).abs() - margin).clamp(min=0.0).pow(power)
    if chosen is None:
        return excess.mean(-1)
    return torch.where(chosen, excess, 0.0).sum(-1) / chosen.sum(-1).clamp(min=1)


def _chosen_classes(old: Tensor, *, top_k: int | None, exclude_labels: Tensor | None) -> Tensor | None:
    """Return [B, C] bool, which classes are in S; None: all of them."""
    import torch

    classes = old.shape[-1]
    allowed = None
    if exclude_labels is not None:
        columns = torch.arange(classes, device=old.device)
        allowed = columns != exclude_labels.unsqueeze(-1)
        old = old.masked_fill(~allowed, -torch.inf)
    if top_k is None or top_k >= classes:
        return allowed
    top = torch.zeros_like(old, dtype=torch.bool).scatter(-1, old.topk(top_k, dim=-1).indices, True)
    return top if allowed is None else top & allowed
