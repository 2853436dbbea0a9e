"""One batch of the new version beside one predecessor: what losses read. Runs in workers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graceful.losses.ops.label_space import LabelSpace
from graceful.losses.ops.reduction import accurate

if TYPE_CHECKING:
    from graceful.chain import OldOutputs
    from graceful.models.base import Outputs


@dataclass(frozen=True, kw_only=True)
class OldVersion:
    """What losses read of one predecessor; `objective.needs` says which parts a spec asks for.

    Attributes:
        name: Unique among the versions.
        classes: Class names in the order of its logits.
        embedding_size: d_old.
        head: Its classifier, [B, d_old] -> [B, C_old], frozen, on the device of the objective; None where it is lost.
        correct_share: Share of the training ids whose class it knows that it gets right, in [0, 1]: over cached views,
            as training meets them, or on the clean view of a live predecessor. None only where `needs` asks not for it.
        known_share: Share of all training ids whose class it knows, in [0, 1]; only reweighting reads it.
        near_chance: Its error is far above the latest predecessor's: it pulls only where it is right.
        prototypes: [C_new, d_old] of unit length for new classes that its head does not know, NaN rows where there is
            none or none is needed. None: no prototypes at all.
    """

    name: str
    classes: tuple[str, ...]
    embedding_size: int
    head: Callable[[Tensor], Tensor] | None = None
    correct_share: float | None = None
    known_share: float = 1.0
    near_chance: bool = False
    prototypes: Tensor | None = None


class Pair:
    """One batch of the new version beside one old version; what several losses share is computed once.

    Args:
        version: The old version.
        space: Classes that both know.
        outputs: The outputs of the new version, fp32 at least; samples that its mask leaves out count as not present.
        labels: [B] new labels.
        old: None where no loss reads old outputs; then everything counts as present.
    """

    def __init__(
        self, version: OldVersion, *, space: LabelSpace, outputs: Outputs, labels: Tensor, old: OldOutputs | None
    ) -> None:
        self.version, self.space, self.outputs, self.labels = version, space, outputs, labels
        present = torch.ones_like(labels, dtype=torch.bool) if old is None else old.present
        self.present = present if outputs.mask is None else present & outputs.mask
        self._old = old

    def _old_values(self, name: str) -> Tensor:
        """Return old values [B, n], zeros where the sample has none, so that garbage reaches no gradient."""
        if self._old is None:
            raise ValueError(f"the losses read {name} of {self.version.name}, but no old outputs were given")
        values: Tensor = getattr(self._old, name)
        return torch.where(self.present.unsqueeze(1), accurate(values), 0.0)

    @property
    def near_chance(self) -> bool:
        """Return whether the old version's error is far above the latest one's."""
        return self.version.near_chance

    @functools.cached_property
    def participates(self) -> Tensor:
        """Return [B] bool: something is known about the sample, and the old version knows its class."""
        return self.present & (self.space.old_labels(self.labels) >= 0)

    @functools.cached_property
    def _all_old_logits(self) -> Tensor:
        return self._old_values("logits")

    @functools.cached_property
    def old_embedding(self) -> Tensor:
        """Return [B, d_old]"""
        return self._old_values("embedding")

    @functools.cached_property
    def old_gallery_embedding(self) -> Tensor:
        """Return embeddings [B, d_old] by the gallery encoder of the old version, which most versions do not have of
        their own."""
        if self._old is None or self._old.gallery is None:
            return self.old_embedding
        return self._old_values("gallery")

    @functools.cached_property
    def old_logits(self) -> Tensor:
        """Return [B, S] in the shared space."""
        return self.space.old(self._all_old_logits)

    @functools.cached_property
    def new_logits(self) -> Tensor:
        """Return [B, S] in the shared space."""
        return self.space.new(self.outputs.logits)

    @functools.cached_property
    def old_correct(self) -> Tensor:
        """Return [B] bool over all classes of the old version; False where it does not know the sample or its class."""
        return self.participates & (self._all_old_logits.argmax(-1) == self.space.old_labels(self.labels))

    @functools.cached_property
    def new_correct(self) -> Tensor:
        """Return [B] bool over all classes of the new version; False where it has no answer."""
        right = self.outputs.logits.detach().argmax(-1) == self.labels
        return right if self.outputs.mask is None else right & self.outputs.mask
