"""Predecessors' outputs on the training data: cached on disk or computed live. Driver builds, workers read.

A cache is a folder named after the SHA-256 of everything its content depends on: samples, ids, predecessor, the
predecessor's transform, views, format. Views are the leading dimension V; a clean cache has one.

    logits.npy      [V, N, C] fp16, row maximum subtracted *   present.npy  [V, N] bool, False where not finite
    offsets.npy     [V, N]    fp32, the row maximum            views.npy    [V, N] uint64, keyed caches only
    embeddings.npy  [V, N, d] fp16, fp32 if fp16 overflows     ids.npy      [N] UTF-8
    meta.json       what the key is made of, and size and SHA-256 of each file

* or the largest of them only, in three files; `layouts` has the formats and their bytes per sample.

Caching under random augmentation is exact only for the very views that were cached, so a keyed cache refuses others.
The digests find rot and truncation; they do not protect against a person who may write to the folder. Send folders
between processes, not `Cache` values, whose arrays are maps of the files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graceful import spec
from graceful.chain import OldOutputs, Predecessor
from graceful.errors import DataError, SpecError
from graceful.storage import Mirror
from graceful.targets import files, layouts, writing
from graceful.targets.blocks import Compute
from graceful.targets.cache import Agreement, Cache
from graceful.targets.teacher import Teacher
from graceful.tasks import view_numbers
from graceful.tasks.base import Samples
from graceful.tasks.names import Column, ids_digest

__all__ = [
    "Agreement",
    "Cache",
    "Live",
    "Mean",
    "Mode",
    "Source",
    "Teacher",
    "TwoEncoders",
    "build",
    "key_views",
    "plan_views",
]

Mode = Literal["clean", "keyed", "live"]


def plan_views(targets: spec.Targets, *, augments: bool) -> Mode:
    """Decide how predecessors' outputs are obtained.

    Args:
        targets: The spec's wish.
        augments: Whether training inputs differ from the clean view.

    Returns:
        `auto` becomes clean without augmentation and keyed with it; keyed without augmentation is clean, the same
        outputs at a fraction of the size.

    Raises:
        SpecError: clean outputs under augmentation without `allow_stale`.
    """
    if not augments:
        return "live" if targets.mode == "live" else "clean"
    if targets.mode == "auto":
        return "keyed"
    if targets.mode == "clean" and not targets.allow_stale:
        raise SpecError(
            "compatibility.targets.mode: clean outputs do not belong to augmented views, and over half of the effect is"
            " lost; write keyed or live, or add allow_stale: true"
        )
    return targets.mode


def key_views(ids: Column | Sequence[str], *, seed: int, count: int) -> NDArray[np.uint64]:
    """Return the view numbers [count, N] of a keyed cache; epoch e trains on row e modulo count."""
    names = np.asarray(ids, dtype=np.str_)
    return np.stack([view_numbers(names, seed, view) for view in range(count)])


@dataclass(frozen=True, kw_only=True)
class Live:
    """A predecessor that runs in every step, on the very batch and views of the new version."""

    predecessor: Predecessor

    def fetch(
        self, positions: NDArray[np.int64], items: Any, views: NDArray[np.uint64] | None, view_index: int
    ) -> OldOutputs:
        """Return outputs as `Cache.fetch` does, from the raw items; positions and view_index are not read."""
        outputs = self.predecessor(items, views)
        return _finite(outputs.embedding, outputs.logits)


@dataclass(frozen=True, kw_only=True)
class TwoEncoders:
    """A predecessor that embeds queries and galleries differently, where a loss reads both.

    Attributes:
        query: Its outputs as always.
        gallery: Those of its gallery encoder.
    """

    query: Cache | Live
    gallery: Cache | Live

    def fetch(
        self, positions: NDArray[np.int64], items: Any, views: NDArray[np.uint64] | None, view_index: int
    ) -> OldOutputs:
        """Return outputs as `Cache.fetch` does, with `gallery`; present where both encoders have outputs."""
        outputs, gallery = (each.fetch(positions, items, views, view_index) for each in (self.query, self.gallery))
        return outputs._replace(present=outputs.present & gallery.present, gallery=gallery.embedding)


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Mean logits of several sources with one label space: the reference runs.

    Embeddings of different runs have no common axes, so the mean has none: its embedding is [B, 0].
    """

    sources: tuple[Cache | Live, ...]

    def fetch(
        self, positions: NDArray[np.int64], items: Any, views: NDArray[np.uint64] | None, view_index: int
    ) -> OldOutputs:
        """Return outputs as `Cache.fetch` does; present where every source is."""
        all_outputs = [source.fetch(positions, items, views, view_index) for source in self.sources]
        logits = torch.stack([outputs.logits for outputs in all_outputs]).mean(0)
        present = torch.stack([outputs.present for outputs in all_outputs]).all(0)
        return OldOutputs(logits, logits.new_zeros(len(logits), 0), present)


Source = Cache | Live | TwoEncoders | Mean | Teacher


def build(
    predecessor: Predecessor,
    samples: Samples,
    *,
    views: NDArray[np.uint64] | None,
    root: str | Path,
    batch_size: int = 1024,
    top: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    mirror: Mirror = Mirror.NONE,
    compute: Compute | None = None,
) -> Cache:
    """Run a predecessor over the training data once, or reopen what was built before.

    An interrupted build continues where it stopped; of several builders of one key one works and the others wait.

    Args:
        predecessor: Whose outputs; if it cannot be run any more, they must have been built before.
        samples: The training data.
        views: [V, N] view numbers; None: the clean view.
        root: Folder of caches; the cache becomes `root/<key>`.
        batch_size: Samples per forward pass.
        top: Keep so many logits of each row and the mean of the others, see `layouts`; None: all.
        progress: Called with rows done and rows in all.
        mirror: Where other machines find caches, and leave theirs.
        compute: Runs the predecessor on blocks of samples, e.g. in other processes; None: here.

    Raises:
        DataError: No samples, outputs of another shape than the predecessor declares, or one that cannot be run.
        IntegrityError: A finished cache is damaged.
        StorageError: The disk is full or refuses.
    """
    if len(samples) == 0 or (views is not None and views.shape[1:] != (len(samples),)):
        shape = None if views is None else views.shape
        raise DataError(f"targets of {predecessor.name}: {len(samples)} samples and views of shape {shape} do not fit")
    identity = {
        "format": files.FORMAT,
        "samples": samples.digest,
        "ids": ids_digest(samples.ids),
        "predecessor": predecessor.digest,
        "transform": predecessor.transform_digest,
        "views": "clean" if views is None else files.array_digest(views),
    }
    if predecessor.role != "query":
        identity["encoder"] = predecessor.role
    top = layouts.logits_kept(top, len(predecessor.classes))
    if top is not None:
        identity["top"] = top
    work = writing.Work(
        predecessor=predecessor,
        samples=samples,
        views=views,
        batch_size=batch_size,
        progress=progress,
        top=top,
        compute=compute,
    )
    return Cache.open(writing.write(Path(root), work=work, identity=identity, mirror=mirror))


def _finite(embedding: Tensor, logits: Tensor) -> OldOutputs:
    present = logits.isfinite().all(1) & embedding.isfinite().all(1)
    mask = present[:, None]
    return OldOutputs(logits.where(mask, 0.0), embedding.where(mask, 0.0), present)
