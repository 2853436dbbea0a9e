"""A task of Gaussian blobs for tests of training, with faults on request. Loaded as a `python` task or imported."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graceful.tasks.base import Samples, Split
from graceful.tasks.hashing import split_digest

DIGEST = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
"""Of this file, for tests that trust versions recorded with it."""
SIZES = {"train": 240, "validation": 60, "constraint": 60, "test": 60}


class BlobNet(nn.Module):
    """Two layers with dropout, so that an unsaved random state would show."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embedding_size = 8
        self.body = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 8))
        self.head = nn.Linear(8, classes)

    def embed(self, x: Tensor) -> Tensor:
        return self.body(x)

    def classify(self, embedding: Tensor) -> Tensor:
        return self.head(embedding)


class Blobs:
    """Augmentation adds noise drawn from the view number.

    A worker may be told to die at its so manieth batch, and to wait for a checkpoint of a run before it does.
    """

    def __init__(
        self,
        *,
        classes: int,
        die_in_rank: int,
        die_at: int | None,
        marker: str | None,
        poison: int | None,
        die_after: str | None = None,
    ) -> None:
        self.classes = tuple(f"blob-{index}" for index in range(classes))
        self.augments = True
        self._die_in_rank, self._die_at, self._marker, self._poison = die_in_rank, die_at, marker, poison
        self._die_after = die_after
        self._batches = 0

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        return BlobNet(len(classes))

    def samples(self, split: Split) -> Samples:
        if split not in SIZES:
            raise KeyError(split)
        random = np.random.default_rng(list(SIZES).index(split))
        count = SIZES[split]
        labels = np.arange(count, dtype=np.int64) % len(self.classes)
        centres = np.random.default_rng(99).normal(size=(len(self.classes), 6)) * 2.0
        items = (centres[labels] + random.normal(size=(count, 6))).astype(np.float32)
        ids = np.asarray([f"{split}/{index:03d}" for index in range(count)])
        return Samples(
            ids=ids,
            labels=labels,
            classes=self.classes,
            groups=ids,
            read=lambda positions: items[positions],
            digest=split_digest(ids, labels, self.classes, items.tobytes().hex()),
        )

    def transform(self, items: Any, views: NDArray[np.uint64] | None) -> Tensor:
        inputs = torch.from_numpy(np.array(items))
        if views is None:
            return inputs
        self._batches += 1
        self._fault()
        noise = np.stack([np.random.default_rng(int(view)).normal(size=6) for view in views]).astype(np.float32)
        if self._batches == self._poison:
            noise[0, 0] = np.nan
        return inputs + 0.1 * torch.from_numpy(noise)

    def _fault(self) -> None:
        if self._die_at != self._batches or self._marker is None or Path(self._marker).exists():
            return
        if torch.distributed.is_initialized() and torch.distributed.get_rank() != self._die_in_rank:
            return
        while self._die_after is not None and not reported(Path(self._die_after)):
            time.sleep(0.05)  # the checkpoint is written and told to Ray beside training
        Path(self._marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def reported(folder: Path) -> bool:
    """Tell whether Ray Train's controller knows of a checkpoint of the run in a folder."""
    return any("step-" in file.read_text() for file in folder.rglob("checkpoint_manager_snapshot.json"))


def task(
    classes: int = 3,
    die_in_rank: int = 0,
    die_at: int | None = None,
    marker: str | None = None,
    *,
    poison: int | None = None,
    die_after: str | None = None,
) -> Blobs:
    return Blobs(
        classes=classes, die_in_rank=die_in_rank, die_at=die_at, marker=marker, poison=poison, die_after=die_after
    )


def opened(folder: Path, **options: Any) -> Any:
    """`bundle.load` of a version that was recorded with this file."""
    from graceful.models import bundle

    return bundle.load(folder, trusted=[DIGEST], **options)
