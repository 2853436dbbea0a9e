"""A blend of reference runs and old versions as outputs of one teacher, computed when caches are opened. In workers.

It costs 4 (C + 1/4) bytes per sample and view, whatever the number of versions, in memory or, above 1 GiB, in an
unnamed file. A step reads the rows of its batch and no cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from graceful.chain import OldOutputs, blending
from graceful.targets.cache import Cache
from graceful.targets.mixture import CHUNK, allocate


@dataclass(frozen=True, kw_only=True)
class OldSide:
    """One old version of a blend.

    Attributes:
        name: The name of the version.
        cache: Its outputs, aligned with the training ids.
        known: Which of its classes the new version knows.
    """

    name: str
    cache: Cache
    known: blending.Known


class Teacher:
    """The outputs of a blend on the training data; a source like a cache.

    Args:
        references: Caches of the reference runs, at least one, all with the same views.
        old: The old versions; those with share 0 are not read.
        shares: The shares of each old version, by its name.
        temperature: T.
        device: Where batches go.
        scratch: Folder on a disk with room, for teachers above 1 GiB; None: the system's.

    Raises:
        ValueError: No reference run.
    """

    def __init__(
        self,
        references: Sequence[Cache],
        old: Sequence[OldSide],
        *,
        shares: Mapping[str, float],
        temperature: float,
        device: torch.device | str = "cpu",
        scratch: Path | None = None,
    ) -> None:
        if not references:
            raise ValueError("a blend needs at least one reference run")
        self._references, self._temperature, self._device = tuple(references), temperature, torch.device(device)
        self._old = tuple((side, shares[side.name]) for side in old if shares[side.name] > 0.0)
        first = self._references[0]
        views = 1 if first.views is None else len(first.views)
        self._logits = allocate((views, len(first), len(first.classes)), scratch)
        self._present = np.zeros((views, len(first)), dtype=np.bool_)
        for view in range(views):
            for start in range(0, len(first), CHUNK):
                self._blend(np.arange(start, min(start + CHUNK, len(first)), dtype=np.int64), view)

    def fetch(
        self, positions: NDArray[np.int64], items: Any, views: NDArray[np.uint64] | None, view_index: int
    ) -> OldOutputs:
        """Return outputs as `Cache.fetch` does; the embedding is [B, 0]."""
        view = self._references[0].view_of(positions, views, view_index)
        logits = torch.from_numpy(self._logits[view, positions]).to(self._device)
        present = torch.from_numpy(self._present[view, positions]).to(self._device)
        return OldOutputs(logits, logits.new_zeros(len(logits), 0), present)

    def _blend(self, rows: NDArray[np.int64], view: int) -> None:
        outputs = [cache.rows(rows, view, "cpu") for cache in self._references]
        mean = torch.stack([run.logits for run in outputs]).mean(0)
        reference = blending.tempered(mean, self._temperature)
        versions, shares = [], []
        for side, share in self._old:
            answers = side.cache.rows(rows, view, "cpu")
            versions.append(blending.completed(reference, answers.logits, side.known, temperature=self._temperature))
            shares.append(share * answers.present.double())
        log_q = blending.blended(reference, versions, shares)
        self._logits[view, rows] = blending.as_logits(log_q, temperature=self._temperature).numpy()
        self._present[view, rows] = torch.stack([run.present for run in outputs]).all(0).numpy()
