"""Metrics computed a second time, naively, from their definitions: loops over ids, brute-force rankings. For tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import binomtest

Flags = Sequence[bool]


def rate(flags: Flags) -> float:
    return sum(1 for flag in flags if flag) / len(flags)


def error_rate(ok: Flags) -> float:
    return rate([not right for right in ok])


def nfr(ok_new: Flags, ok_old: Flags) -> float:
    return rate([old and not new for new, old in zip(ok_new, ok_old, strict=True)])


def pfr(ok_new: Flags, ok_old: Flags) -> float:
    return rate([new and not old for new, old in zip(ok_new, ok_old, strict=True)])


def relative_nfr(ok_new: Flags, ok_old: Flags) -> float | None:
    denominator = (1 - error_rate(ok_old)) * error_rate(ok_new)
    return None if denominator == 0 else nfr(ok_new, ok_old) / denominator


def share(hits: Flags, among: Flags) -> float | None:
    kept = [hit for hit, member in zip(hits, among, strict=True) if member]
    return rate(kept) if kept else None


def macro_nfr(ok_new: Flags, ok_old: Flags, classes: Sequence[int]) -> float:
    per_class = []
    for name in set(classes):
        rows = [i for i, own in enumerate(classes) if own == name]
        per_class.append(nfr([ok_new[i] for i in rows], [ok_old[i] for i in rows]))
    return sum(per_class) / len(per_class)


def wilson(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return both ends of SciPy's score interval."""
    found = binomtest(count, n).proportion_ci(confidence, method="wilson")
    return found.low, found.high


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    dot = math.fsum(a * b for a, b in zip(left, right, strict=True))
    size = math.sqrt(math.fsum(a * a for a in left)) * math.sqrt(math.fsum(b * b for b in right))
    return dot / size if size else 0.0


def ranked_hits(
    query: tuple[str, str, Sequence[float]], gallery: Sequence[tuple[str, str, Sequence[float]]], *, digits: int = 7
) -> list[bool]:
    """Return one query's hits in rank order; items are (id, label, vector); the query itself is not among them."""
    others = [item for item in gallery if item[0] != query[0]]
    others.sort(key=lambda item: (-round(cosine(query[2], item[2]), digits), item[0]))
    return [label == query[1] for _, label, _ in others]


def gain(grades: Sequence[int], depth: int = 10) -> float | None:
    """Normalised discounted cumulative gain of grades in rank order."""

    def discounted(ranked: Sequence[int]) -> float:
        return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(ranked[:depth], start=1))

    ideal = discounted(sorted(grades, reverse=True))
    return discounted(grades) / ideal if ideal else None


def average_precision(hits: Flags) -> float | None:
    positions = [position for position, hit in enumerate(hits, start=1) if hit]
    precisions = [number / position for number, position in enumerate(positions, start=1)]
    return sum(precisions) / len(precisions) if precisions else None


def average_compatibility(matrix: Sequence[Sequence[float]], diagonal: Sequence[float] | None = None) -> float:
    size = len(matrix)
    bar = [matrix[j][j] for j in range(size)] if diagonal is None else diagonal
    met = [1.0 if matrix[i][j] > bar[j] else 0.0 for i in range(size) for j in range(size) if j < i]
    return 2 / (size * (size - 1)) * sum(met)
