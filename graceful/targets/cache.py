"""The cache of one predecessor's outputs as its readers see it: opened, verified, joined by id. Driver and workers."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graceful import locks, storage
from graceful.chain import OldOutputs, Predecessor
from graceful.chain.old_labels import OldLabels
from graceful.errors import DataError, IntegrityError, StorageError
from graceful.targets import columns, files, layouts
from graceful.targets.layouts import TopLogits
from graceful.tasks.base import Samples
from graceful.tasks.names import Column, Names, encode_ids, ids_digest, positions_of
from graceful.tasks.portions import portion

MIN_COVERAGE = 0.5
MIN_AGREEMENT = 0.9
_CHUNK = 65_536


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well cached rows match the predecessor run now.

    Attributes:
        argmax: Share of samples with the same argmax.
        mean_kl: Mean KL(live || cached) in nats.
        count: Samples compared.
    """

    argmax: float
    mean_kl: float
    count: int

    def require(self, where: str) -> None:
        """Refuse rows that do not belong to this predecessor and these samples.

        Raises:
            IntegrityError: The argmax agrees on less than 90 %.
        """
        if self.argmax < MIN_AGREEMENT:
            raise IntegrityError(
                f"{where}: cached and live outputs agree on {self.argmax:.1%} of {self.count} samples, bound"
                f" {MIN_AGREEMENT:.0%}, mean KL {self.mean_kl:.2g}; delete the folder and run again, it is rebuilt"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Cache:
    """One predecessor's outputs, memory-mapped. `open` or `build` make it.

    Attributes:
        folder: Where it lies.
        key: Digest of what it depends on; the folder's name.
        name: The predecessor's version name.
        classes: The predecessor's classes, in the order of the logits.
        ids: [N] UTF-8.
        ids_digest: The digest of the ids, see `names.ids_digest`.
        logits: [V, N, C] fp16, below the row maximum.
        offsets: [V, N] fp32.
        embeddings: [V, N, d] fp16 or fp32.
        present: [V, N] bool.
        views: [V, N] uint64; None: clean.
        order: Positions that callers use -> rows, -1 where there is none; None: the same.
        device: Where rows go.
        lease: Holds a shared lock while this value lives, so that the cache is not evicted; None: no lock could be had.
    """

    folder: Path
    key: str
    name: str
    classes: tuple[str, ...]
    ids: NDArray[np.bytes_]
    ids_digest: str
    logits: NDArray[np.float16] | TopLogits
    offsets: NDArray[np.float32]
    embeddings: NDArray[np.floating[Any]]
    present: NDArray[np.bool_]
    views: NDArray[np.uint64] | None
    order: NDArray[np.int64] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    lease: locks.Shared | None = None

    @classmethod
    def open(cls, folder: str | Path) -> Cache:
        """Open a finished cache and verify it.

        Files up to 256 MiB are hashed whole, larger ones by size and 64 chunks of 1 MiB spread evenly.

        Raises:
            StorageError: There is none.
            IntegrityError: A file does not have its recorded digest, or is not what a cache has under its name.
        """
        folder = Path(folder)
        lease = _lease(folder)
        meta = _meta(folder)
        files.verify(folder, meta["files"])
        arrays = columns.mapped(folder, names=meta["files"], classes=len(meta["classes"]))
        return cls(
            folder=folder,
            key=meta["key"],
            name=meta["name"],
            classes=tuple(meta["classes"]),
            ids=arrays["ids.npy"],
            ids_digest=str(meta["identity"].get("ids")),
            logits=_logits(arrays, classes=len(meta["classes"])),
            offsets=arrays["offsets.npy"],
            embeddings=arrays["embeddings.npy"],
            present=arrays["present.npy"],
            views=arrays.get("views.npy"),
            lease=lease,
        )

    def __len__(self) -> int:
        return len(self.ids) if self.order is None else len(self.order)

    def align(self, ids: Column | Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each id, -1 where the cache has none. [N'] -> [N'] int64."""
        order = self._order(ids)
        return np.arange(len(self.ids), dtype=np.int64) if order is None else order

    def _order(self, ids: Column | Sequence[str]) -> NDArray[np.int64] | None:
        """Return the row of each id as `align`; None where they are the cached ids, in their order."""
        if isinstance(ids, Names) and ids_digest(ids) == self.ids_digest:
            return None
        requested_ids = encode_ids(np.asarray(ids))
        return None if np.array_equal(requested_ids, self.ids) else positions_of(requested_ids, self.ids)

    def coverage(self, ids: Column | Sequence[str]) -> float:
        """Return the share of ids that have outputs in every view; 1.0 for no ids."""
        return self._covered(self._order(ids))

    def aligned(self, ids: Column | Sequence[str], *, device: torch.device | str | None = None) -> Cache:
        """Return the same cache, addressed by positions in `ids`, with outputs on `device`; nothing is copied.

        Raises:
            DataError: Less than half of the ids are covered.
        """
        order = self._order(ids)
        share, count = self._covered(order), len(ids)
        if share < MIN_COVERAGE:
            raise DataError(
                f"{self.folder}: covers {round(share * count)} of {count} ids, bound {MIN_COVERAGE:.0%};"
                f" check that the ids of the training data are those {self.name} was run on and its outputs are finite"
            )
        return replace(self, order=order, device=self.device if device is None else torch.device(device))

    def rows(
        self,
        positions: NDArray[np.int64],
        view: int | NDArray[np.int64] = 0,
        device: torch.device | str | None = None,
    ) -> OldOutputs:
        """Return cached outputs as fp32.

        Args:
            positions: [B]; negative: nothing is known, `present` is False.
            view: Index of the view, or one per position.
            device: None: the cache's own.
        """
        rows = positions if self.order is None else np.where(positions < 0, -1, self.order[positions])
        cached = rows >= 0
        row_index = np.where(cached, rows, 0)
        logits = self.logits[view, row_index].astype(np.float32) + self.offsets[view, row_index][:, None]
        embedding = self.embeddings[view, row_index].astype(np.float32)
        present = self.present[view, row_index] & cached
        logits[~cached], embedding[~cached] = 0.0, 0.0
        target_device = self.device if device is None else torch.device(device)
        return OldOutputs(
            _tensor(logits, target_device), _tensor(embedding, target_device), _tensor(present, target_device)
        )

    def fetch(
        self, positions: NDArray[np.int64], items: Any, views: NDArray[np.uint64] | None, view_index: int
    ) -> OldOutputs:
        """Return the outputs that a training step needs, as from any source; `items` are not read.

        Args:
            positions: [B] positions of the batch.
            items: The raw batch.
            views: [B] view numbers of the batch, None: clean.
            view_index: Which cached view they are; a clean cache has one and ignores it.

        Raises:
            DataError: The batch's views are not those the cache was built with.
        """
        return self.rows(positions, self.view_of(positions, views, view_index))

    def view_of(self, positions: NDArray[np.int64], views: NDArray[np.uint64] | None, view_index: int) -> int:
        """Return the cached view a batch belongs to; arguments and errors as of `fetch`."""
        if self.views is None:
            return 0
        rows = positions if self.order is None else self.order[positions]
        cached = rows >= 0
        if view_index >= len(self.views) or views is None:
            raise DataError(
                f"{self.folder}: holds {len(self.views)} views, asked for view {view_index} of {_kind(views)}"
            )
        if not np.array_equal(self.views[view_index, rows[cached]], views[cached]):
            raise DataError(
                f"{self.folder}: the batch's views are not the cached view {view_index}; derive both from key_views"
                " with one seed, or use live targets"
            )
        return view_index

    def correct_share(self, labels: NDArray[np.int64] | OldLabels) -> float:
        """Return the share of rows (samples in all views) that the predecessor gets right, where it knows the class.

        Args:
            labels: [N] in the predecessor's label space by position, -1: a class it does not know.

        Returns:
            NaN when no sample qualifies.
        """
        hits = total = 0
        views = 1 if self.views is None else len(self.views)
        for view, start in itertools.product(range(views), range(0, len(self), _CHUNK)):
            stop = min(start + _CHUNK, len(self))
            outputs = self.rows(np.arange(start, stop), view, "cpu")
            batch_labels = torch.from_numpy(np.array(labels[start:stop], dtype=np.int64))
            eligible = outputs.present & (batch_labels >= 0)
            hits += int((eligible & (outputs.logits.argmax(1) == batch_labels)).sum())
            total += int(eligible.sum())
        return hits / total if total else math.nan

    def check(
        self, predecessor: Predecessor, samples: Samples, views: NDArray[np.uint64] | None, *, count: int = 1000
    ) -> Agreement:
        """Run the predecessor on some samples and compare with their rows.

        Args:
            predecessor: Whose outputs these should be.
            samples: The training data, joined by id.
            views: [V, N] as they were built with, None: clean.
            count: At most so many, spread evenly over samples and in turn over views.

        Raises:
            DataError: No sample in common.
        """
        sampled = np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(np.int64))
        view_indices = np.arange(len(sampled)) % (1 if views is None else len(views))
        numbers = None if views is None else views[view_indices, sampled]
        size = portion(samples, predecessor.learner.collate, most=count)
        slices = [slice(start, start + size) for start in range(0, len(sampled), size)]
        live_outputs = [
            predecessor(samples.read(sampled[rows]), None if numbers is None else numbers[rows]) for rows in slices
        ]
        logits = torch.cat([outputs.logits for outputs in live_outputs])
        order = self._order(samples.ids) if isinstance(samples.ids, Names) else self.align(samples.ids[sampled])
        rows = sampled if order is None else order[sampled] if isinstance(samples.ids, Names) else order
        cached = replace(self, order=None).rows(rows, view_indices, "cpu")
        present = cached.present
        if not bool(present.any()):
            raise DataError(
                f"{self.folder}: none of {len(sampled)} samples is cached; check the ids of the training data"
            )
        live_logits, cached_logits = logits.cpu()[present].double(), cached.logits[present].double()
        kl = torch.nn.functional.kl_div(
            cached_logits.log_softmax(1), live_logits.log_softmax(1), log_target=True, reduction="none"
        )
        return Agreement(
            argmax=float((live_logits.argmax(1) == cached_logits.argmax(1)).double().mean()),
            mean_kl=float(kl.sum(1).mean()),
            count=int(present.sum()),
        )

    def _covered(self, order: NDArray[np.int64] | None) -> float:
        """Return the share of rows that are present in every view; -1 in the order is a row that is not."""
        count = len(self.ids) if order is None else len(order)
        covered = 0
        for start in range(0, count, _CHUNK):
            stop = min(start + _CHUNK, count)
            rows = np.arange(start, stop) if order is None else order[start:stop]
            covered += int((self.present[:, rows].all(axis=0) & (rows >= 0)).sum())
        return covered / count if count else 1.0


def _logits(arrays: dict[str, NDArray[Any]], *, classes: int) -> NDArray[np.float16] | TopLogits:
    if "logits.npy" in arrays:
        return arrays["logits.npy"]
    labels, values, rest = (arrays[name] for name in (layouts.LABELS, layouts.VALUES, layouts.REST))
    return TopLogits(labels=labels, values=values, rest=rest, classes=classes)


def _lease(folder: Path) -> locks.Shared | None:
    """Lock out eviction and mark the time of use; a read-only folder is used without."""
    with contextlib.suppress(OSError):
        lease = locks.Shared(folder.with_name(f"{folder.name}{files.IN_USE}"))
        os.utime(folder / files.META)
        return lease
    return None


def _meta(folder: Path) -> dict[str, Any]:
    path = folder / files.META
    if not path.is_file():
        raise StorageError(f"{folder}: no finished cache of predecessor outputs; build it again")
    try:
        meta: dict[str, Any] = json.loads(storage.read_bytes(path))
        key = storage.sha256_json(meta["identity"])
        well_formed = (
            isinstance(meta["files"], dict) and isinstance(meta["name"], str) and isinstance(meta["classes"], list)
        )
        if not well_formed:
            raise ValueError("not the description of a cache")
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise IntegrityError(f"{path}: damaged; delete the folder and run again, it is rebuilt") from e
    if not key == meta.get("key") == folder.name:
        raise IntegrityError(f"{path}: describes cache {key[:12]}..., not this folder; delete it and run again")
    return meta


def _tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _kind(views: NDArray[np.uint64] | None) -> str:
    return "clean samples" if views is None else "augmented samples"
