"""Several predecessors' caches as one target per sample, mixed when they are opened, not in every step. In workers.

A mixture costs 4 (S + 1) bytes per sample and view, whatever the number of predecessors (S: classes they share with the
new version, or the length of the embedding), in memory or, above 1 GiB, in an unnamed file. Mixing reads every cache
once; other strengths mix again, the same sums over the same rows.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graceful.chain import OldOutputs
from graceful.chain.merging import Merged, Mixer
from graceful.chain.old_labels import OldLabels
from graceful.losses.base import Loss, Merge
from graceful.losses.ops import focus
from graceful.storage import guarded
from graceful.targets.cache import Cache

CHUNK = 8192
"""Rows that are mixed at a time."""
_IN_MEMORY = 2**30


@dataclass(frozen=True, kw_only=True)
class Member:
    """One predecessor in a mixture.

    Attributes:
        name: The name of the version.
        cache: Its outputs, aligned with the training ids.
        columns: [S] its label for each class of the mixture, by name; None: the mixture is of embeddings.
        labels: [N] its label of each training sample, -1: a class it does not know.
        correct_share: As `OldVersion.correct_share`; read only for the focus `old_correct`.
        near_chance: As `OldVersion.near_chance`.
    """

    name: str
    cache: Cache
    columns: NDArray[np.int64] | None
    labels: NDArray[np.int64] | OldLabels
    correct_share: float | None = None
    near_chance: bool = False


class Mixture:
    """One loss against several predecessors; call `remix` before the first `fetch`.

    Args:
        loss: One that merges, see `Loss.merge`.
        members: At least one, all with the same views and the same S.
        device: Where batches go.
        scratch: Folder on a disk with room, for mixtures above 1 GiB; None: the system's.

    Raises:
        ValueError: The members' views or sizes differ, or the loss does not merge.
    """

    def __init__(
        self,
        loss: Loss,
        members: Sequence[Member],
        *,
        device: torch.device | str = "cpu",
        scratch: Path | None = None,
    ) -> None:
        shapes = {(_views(member.cache), len(member.cache), _size(member)) for member in members}
        if len(shapes) != 1:
            raise ValueError(f"members of a mixture must have one shape of (views, samples, size), got {shapes}")
        ((views, samples, size),) = shapes
        if loss.merge is None:
            raise ValueError(f"{loss.kind} does not merge")
        self._merge: Merge = loss.merge
        self._loss, self._members, self._device = loss, tuple(members), torch.device(device)
        self._target = allocate((views, samples, size), scratch)
        self._weight = allocate((views, samples), scratch)
        self.conflict = 0.0
        """Mean conflict index over the samples that predecessors know, in units of the loss."""

    def remix(self, strengths: Mapping[str, float]) -> None:
        """Add the members up, each with the strength of its name; those with strength 0 are not read."""
        views, samples = self._weight.shape
        total, count = 0.0, 0
        for view in range(views):
            for start in range(0, samples, CHUNK):
                rows = np.arange(start, min(start + CHUNK, samples), dtype=np.int64)
                merged, conflict = self._merged_rows(rows, view, strengths)
                self._target[view, rows] = merged.target.numpy()
                self._weight[view, rows] = merged.weight.numpy()
                total += float(conflict.sum())
                count += int((merged.weight > 0.0).sum())
        self.conflict = total / count if count else 0.0

    def fetch(self, positions: NDArray[np.int64], views: NDArray[np.uint64] | None, view_index: int) -> Merged:
        """Return target and weight of a batch, fp32; arguments and errors as of `Cache.fetch`."""
        view = self._members[0].cache.view_of(positions, views, view_index)
        target, weight = (
            torch.from_numpy(self._target[view, positions]),
            torch.from_numpy(self._weight[view, positions]),
        )
        return Merged(target.to(self._device), weight.to(self._device))

    def _merged_rows(self, rows: NDArray[np.int64], view: int, strengths: Mapping[str, float]) -> tuple[Merged, Tensor]:
        mixer = Mixer(self._merge.form, temperature=self._merge.temperature)
        for member in self._members:
            strength = strengths[member.name]
            if strength > 0.0 or member is self._members[0]:
                outputs = member.cache.rows(rows, view, "cpu")
                mixer.add(_values(member, outputs), strength * self._weights(member, outputs, rows))
        return mixer.merged()

    def _weights(self, member: Member, outputs: OldOutputs, rows: NDArray[np.int64]) -> Tensor:
        """Return [B] as the loss of this predecessor alone would weigh its samples, mean 1 over those it knows."""
        if not self._merge.of_logits:
            return outputs.present.double()
        labels = torch.from_numpy(member.labels[rows])
        class_known = outputs.present & (labels >= 0)
        correct = class_known & (outputs.logits.argmax(1) == labels)
        loss, share = self._loss, member.correct_share or 0.0
        weights = loss.sample_weights(_Correctness(correct, correct, member.near_chance))
        if weights is None:
            return class_known.double()
        mean = loss.mean_weight(correct_share=share, near_chance=member.near_chance)
        return focus.normalise(weights.double(), mean=mean) * class_known


class _Correctness(NamedTuple):
    """What weights of samples may depend on where the new version has no outputs yet: never on its own."""

    old_correct: Tensor
    new_correct: Tensor
    near_chance: bool


def _values(member: Member, outputs: OldOutputs) -> Tensor:
    if member.columns is None:
        return outputs.embedding
    return outputs.logits[:, torch.from_numpy(member.columns)]


def _views(cache: Cache) -> int:
    return 1 if cache.views is None else len(cache.views)


def _size(member: Member) -> int:
    return int(member.cache.embeddings.shape[2]) if member.columns is None else len(member.columns)


def allocate(shape: tuple[int, ...], scratch: Path | None) -> NDArray[Any]:
    """Return an fp32 array of zeros: in memory or, above 1 GiB, in an unnamed file below `scratch`."""
    if 4 * int(np.prod(shape, dtype=np.int64)) <= _IN_MEMORY:
        return np.zeros(shape, dtype=np.float32)
    size = 4 * int(np.prod(shape, dtype=np.int64))
    with guarded(scratch or tempfile.gettempdir(), "write"), tempfile.TemporaryFile(dir=scratch) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a disk that is full is an error here, and a signal later
        return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
