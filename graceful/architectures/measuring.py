"""How well a path of a trained supernet finds, on an index of its own and on the gallery model's. Driver and actors."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graceful.architectures.held_out import Sides
from graceful.architectures.space import Path
from graceful.architectures.supernet import recalibrate
from graceful.learners import learner_of
from graceful.metrics import retrieval
from graceful.models.base import CODE_FAULTS
from graceful.models.staged import StagedNet
from graceful.spec.architectures import Reward
from graceful.tasks.base import Samples, Task

BATCH = 256
"""Images that a path embeds at a time."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How a path was measured.

    Attributes:
        scores: mAP and R@1 on an index of its own (`small_alone_`) and on the gallery model's (`small_on_big_`).
        failed: Why it has no scores, in one line; empty: it has.
        seconds: Wall clock.
    """

    scores: dict[str, float] = field(default_factory=dict)
    failed: str = ""
    seconds: float = 0.0

    def reward(self, kind: Reward) -> float | None:
        """Return what a search maximises; None where the path failed."""
        if self.failed:
            return None
        if kind == "product":
            return self.scores["small_alone_map"] * self.scores["small_on_big_map"]
        return self.scores[f"{kind}_map"]


class Takes(Protocol):
    """What has networks within it: a supernet, or a network with narrower ones."""

    def network(self, path: Any, /) -> StagedNet:
        """Return one of them with copies of its weights."""
        ...


class Evaluator:
    """Measures paths of one supernet; the images and the gallery model's index are read once.

    Args:
        supernet: Trained.
        task: The spec's task: how items become batches.
        train: Samples from whose beginning normalisation is recalibrated, none of which is measured on.
        sides: What is measured on.
        index: [N, d] embeddings of the gallery side by the gallery model.
        batches: How many recalibrate.
        batch_size: The batch size of these.
    """

    def __init__(
        self,
        supernet: Takes,
        task: Task,
        *,
        train: Samples,
        sides: Sides,
        index: NDArray[np.float32],
        batches: int,
        batch_size: int,
    ) -> None:
        self._supernet, self._sides = supernet, sides
        parts = some_batches(len(train), batches=batches, batch_size=batch_size)
        self._recalibration = [images_of(task, train, part) for part in parts]
        self._queries, self._gallery = (
            [images_of(task, side, part) for part in _parts(len(side))] for side in (sides.query, sides.gallery)
        )
        self._big = _embeddings(sides.gallery, index)

    def recalibrated(self, path: Any) -> StagedNet:
        """Return the network of a path, its normalisation recalibrated."""
        network = self._supernet.network(path)
        recalibrate(network, self._recalibration)
        return network

    def measure(self, path: Path) -> Measured:
        """Recalibrate and measure a path; one that cannot run has a reason in place of scores."""
        begun = time.monotonic()
        try:
            scores = self.scores(self.recalibrated(path))
        except (*CODE_FAULTS, MemoryError) as e:
            reason = f"{type(e).__name__}: {' '.join(str(e).split())}"[:300]
            return Measured(failed=reason, seconds=time.monotonic() - begun)
        return Measured(scores=scores, seconds=time.monotonic() - begun)

    def scores(self, network: StagedNet) -> dict[str, float]:
        """Return mAP and R@1 of a network, on an index of its own and on the gallery model's.

        Raises:
            ValueError: Its embeddings are not finite, or no query has an answer.
        """
        queries = _embeddings(self._sides.query, _embedded(network, self._queries))
        own = _embeddings(self._sides.gallery, _embedded(network, self._gallery))
        return {**scores_of(queries, own, "small_alone"), **scores_of(queries, self._big, "small_on_big")}


def scores_of(queries: retrieval.Embeddings, index: retrieval.Embeddings, name: str) -> dict[str, float]:
    """Return mAP and R@1 of queries on an index.

    Raises:
        ValueError: No query has an answer there.
    """
    ranking = retrieval.rank(queries, index)
    judged = ranking.judged
    if not judged.any():
        raise ValueError("no query has a gallery sample of its class")
    return {
        f"{name}_map": float(ranking.average_precision[judged].mean()),
        f"{name}_recall_at_1": float((ranking.first_hit[judged] == 1).mean()),
    }


def rewards_of(measured: Mapping[Any, Measured], kind: Reward) -> dict[Any, float | None]:
    """Return the reward of each measured path."""
    return {key: found.reward(kind) for key, found in measured.items()}


def _parts(count: int) -> list[NDArray[np.int64]]:
    return [np.arange(at, min(at + BATCH, count), dtype=np.int64) for at in range(0, count, BATCH)]


def some_batches(count: int, *, batches: int, batch_size: int) -> list[NDArray[np.int64]]:
    """Return the positions of a few batches of some samples, always the same ones."""
    rows = np.random.default_rng(0).permutation(count)[: batches * batch_size]
    parts = (rows[at : at + batch_size] for at in range(0, len(rows), batch_size))
    return [np.sort(part) for part in parts if len(part) > 1]


def images_of(task: Task, samples: Samples, rows: NDArray[np.int64]) -> Tensor:
    """Return samples as a network takes them, not augmented.

    Raises:
        TypeError: They are not images.
    """
    images = learner_of(task).collate(samples.read(rows), None)
    if not isinstance(images, Tensor):
        raise TypeError(f"networks of kind stages take one tensor of images, the task gives {type(images).__name__}")
    return images


@torch.inference_mode()
def _embedded(network: StagedNet, batches: Sequence[Tensor]) -> NDArray[np.float32]:
    vectors = torch.cat([network.embed(images) for images in batches]).float()
    if not bool(vectors.isfinite().all()):
        raise ValueError("its embeddings are not finite")
    return np.asarray(vectors.numpy(), dtype=np.float32)


def _embeddings(samples: Samples, vectors: NDArray[np.float32]) -> retrieval.Embeddings:
    return retrieval.Embeddings(
        ids=np.asarray(samples.ids),
        labels=np.asarray(samples.classes)[samples.labels],
        vectors=vectors,
        groups=np.asarray(samples.groups),
    )
