"""Splits of query and gallery samples, their embeddings and scores. For the benchmarks of query models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from graceful.chain import Predecessor
from graceful.metrics import retrieval
from graceful.metrics.intervals import Evidence, paired_difference
from graceful.programs.outputs.model_outputs import run_on_split
from graceful.tasks.base import Samples, Task


def halves(samples: Samples, *, every: int = 1) -> dict[str, np.ndarray]:
    """Return the positions of every n-th sample in two halves of the groups."""
    positions = np.arange(0, len(samples), every)
    groups = np.unique(samples.groups)
    first = np.isin(np.asarray(samples.groups)[positions], groups[0::2])
    return {"query": positions[first], "gallery": positions[~first]}


def part(samples: Samples, positions: np.ndarray) -> Samples:
    """Return some of the samples."""
    return Samples(
        ids=np.asarray(samples.ids)[positions],
        labels=samples.labels[positions],
        classes=samples.classes,
        groups=np.asarray(samples.groups)[positions],
        read=lambda rows: samples.read(positions[rows]),
        digest=samples.digest,
    )


def splits(task: Task) -> dict[str, dict[str, Samples]]:
    """Return query and gallery samples by split; `validation` chooses, the others are reported."""
    test, validation = task.samples("test"), task.samples("validation")
    return {
        "unseen": {"query": task.samples("query"), "gallery": task.samples("gallery")},
        "seen": {side: part(test, rows) for side, rows in halves(test, every=5).items()},
        "validation": {side: part(validation, rows) for side, rows in halves(validation).items()},
    }


Embedded = dict[str, dict[str, retrieval.Embeddings]]


def embedded(version: Predecessor, data: Mapping[str, Mapping[str, Samples]]) -> Embedded:
    """Return the embeddings of every side of every split."""
    return {
        split: {
            side: retrieval.Embeddings(
                ids=np.asarray(samples.ids),
                labels=np.asarray(samples.classes)[samples.labels],
                vectors=run_on_split(version, samples, 2048).embeddings,
                groups=np.asarray(samples.groups),
            )
            for side, samples in sides.items()
        }
        for split, sides in data.items()
    }


def scores(ranking: retrieval.Ranking) -> dict[str, float]:
    """Return R@1 and mAP, as fractions."""
    judged = ranking.judged
    return {
        "recall_at_1": float((ranking.first_hit[judged] == 1).mean()),
        "map": float(ranking.average_precision[judged].mean()),
    }


def four_pairs(
    query: Embedded,
    gallery: Embedded,
    *,
    best: Mapping[str, retrieval.Ranking],
    macs: int,
    common: Mapping[str, Any],
    large: int,
) -> list[dict[str, Any]]:
    """Return rows with M(q,q), M(q,g), M(g,q) and the distance of M(q,g) from the best independent model."""
    found = []
    for split in ("unseen", "seen"):
        lengths = np.linalg.norm(query[split]["query"].vectors, axis=1)
        row = {**common, "macs": macs, "macs_ratio": large / macs, "split": split}
        row["norm_spread"] = float(lengths.std() / lengths.mean())
        for pair, left, right in (("q,q", query, query), ("q,g", query, gallery), ("g,q", gallery, query)):
            ranking = retrieval.rank(left[split]["query"], right[split]["gallery"])
            measured = {**row, "pair": pair, **scores(ranking)}
            if pair == "q,g":
                judged = ranking.judged
                assert ranking.groups is not None
                evidence = Evidence.of(ranking.groups[judged], draws=1000, seed=0)
                gain = paired_difference(
                    ranking.average_precision[judged], best[split].average_precision[judged], evidence
                )
                measured |= {"difference": gain.value, "lower": gain.lower, "upper": gain.upper}
            found.append(measured)
    return found
