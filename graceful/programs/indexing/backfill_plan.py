"""`graceful backfill plan`: what a backfill takes, and what searches are worth meanwhile. Driver."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.errors import SpecError
from graceful.index import Index, Vectors
from graceful.index.backfill_work import Reembed, Settings
from graceful.index.curve import FRACTIONS, Judged, Point, Reading, Side, curve
from graceful.index.manifest import Manifest
from graceful.index.order import LABEL, Order, priority
from graceful.index.vectors import unit_length
from graceful.programs.indexing.reembed import FileVectors

WARM = 16
"""Vectors that are made before the rate is measured."""
KNOWN = 4
"""One in so many of the sample is a pair that the order by uncertainty knows."""
AGREEING = 10
"""Nearest items in the new space that count as right where there are no labels."""


def planned(
    index: Index, reembed: Reembed, settings: Settings, *, sample: int, price: float | None = None
) -> dict[str, Any]:
    """Return what a backfill would take, as JSON values.

    Args:
        index: What would be backfilled; it is not changed.
        reembed: The new model.
        settings: Seed, limit of the rate, traffic.
        sample: Ids that are embedded.
        price: Per hour; None: unknown.

    Raises:
        SpecError: There is nothing to replace.
        DataError: The new model has no items for the ids of the index.
    """
    head = index.head()
    to = head.named(reembed.space.fingerprint) or reembed.space.name
    left = {name: count for name, count in head.counts.items() if name != to and count}
    if not left:
        raise SpecError(f"{index.place}: all vectors are of {to}; there is nothing to backfill")
    source = max(left, key=lambda name: left[name])
    old = _sampled(index, head, source, sample, settings.seed)
    new, seconds = _embedded(reembed, old)
    if len(new) < 3:
        raise SpecError(f"{index.place}: {to} has items for {len(new)} of {len(old)} ids; give the split that has them")
    measured = None if isinstance(reembed, FileVectors) or seconds <= 0 else (len(new) - WARM) / seconds
    rate = min((value for value in (measured, settings.rate) if value), default=None)
    count = sum(left.values())
    hours = None if rate is None else count / rate / 3600
    old = old.take(np.isin(old.ids, new.ids))
    points, metric = _curves(index, old, new, settings, accepted=(to, source) in head.accepts)
    return {
        "from": source,
        "to": to,
        "vectors": count,
        "sample": len(new),
        "without_item": round(1.0 - len(new) / max(len(_ids(index, head, source, sample, settings.seed)), 1), 4),
        "vectors_per_second": measured,
        "limit": settings.rate,
        "hours": hours,
        "cost": None if hours is None or price is None else hours * price,
        "bytes": _bytes(head, source, count, reembed.space.dimension),
        "metric": metric,
        "curve": points,
        "best_order": _best(points),
    }


def _ids(index: Index, head: Manifest, space: str, count: int, seed: int) -> NDArray[np.str_]:
    """Return a random sample of the ids of a space, sorted."""
    return np.sort(np.random.default_rng(seed).permutation(index.view(head).ids(space))[:count])


def _sampled(index: Index, head: Manifest, space: str, count: int, seed: int) -> Vectors:
    return index.view(head).read(space, _ids(index, head, space, count, seed))


def _embedded(reembed: Reembed, old: Vectors) -> tuple[Vectors, float]:
    """Return new vectors for some ids, sorted by id, and the seconds that all but the first few took."""
    warm = reembed(old.ids[:WARM])
    begun = time.perf_counter()
    rest = reembed(old.ids[WARM:])
    seconds = time.perf_counter() - begun
    made = Vectors(ids=np.concatenate([warm.ids, rest.ids]), vectors=np.concatenate([warm.vectors, rest.vectors]))
    made = made.take(np.argsort(made.ids, kind="stable"))
    unit = unit_length(made.vectors, names=made.ids, where=f"sample of {reembed.space.name}")
    return Vectors(ids=made.ids, vectors=unit), seconds


def _bytes(head: Manifest, source: str, count: int, dimension: int) -> int:
    """Return what the new vectors take; the old ones stay until no snapshot needs them."""
    parts = [part for part in head.parts if part.space == source]
    rows = sum(part.rows for part in parts)
    others = sum(part.bytes for part in parts) / rows - 4 * head.spaces[source].dimension if rows else 0.0
    return round(count * (4 * dimension + max(others, 0.0)))


def _curves(
    index: Index, old: Vectors, new: Vectors, settings: Settings, *, accepted: bool
) -> tuple[list[dict[str, Any]], str]:
    """Return the points of every order, and what counts as right in them."""
    first, second = (Side(queries=side.vectors, gallery=side.vectors) for side in (old, new))
    itself = np.arange(len(old), dtype=np.int64)
    labels = old.payload.get(LABEL)
    right = _agreeing(second) if labels is None else labels[:, None] == labels[None, :]
    judged = Judged(right=right, itself=itself)
    if not judged.asked.any():
        judged, labels = Judged(right=_agreeing(second), itself=itself), None
    known = np.random.default_rng(settings.seed).permutation(len(old))[: max(len(old) // KNOWN, 2)]
    orders: list[Order] = ["random", "distance", "uncertainty", *(["traffic"] if settings.traffic else [])]  # type: ignore[list-item]
    readings: list[Reading] = ["both", *(["new"] if accepted else [])]  # type: ignore[list-item]
    points = []
    for order in orders:
        pairs = (old.vectors[known], new.vectors[known])
        early = priority(order, old, seed=settings.seed, pairs=pairs, traffic=settings.traffic)
        if order == "uncertainty":
            early[known] += 10.0  # their pairs are known because they come first
        for reading in readings:
            found = curve(first, second, judged, early, reading=reading, fractions=FRACTIONS)
            points += [{"order": order, "queries": reading, **asdict(point)} for point in found]
    name = (
        "results of the same label" if labels is not None else "results that are among the ten nearest of the new model"
    )
    return points, name


def _agreeing(new: Side) -> NDArray[np.bool_]:
    """Return [N, N] whether an item is among the nearest of another in the new space."""
    scores = new.queries @ new.gallery.T
    np.fill_diagonal(scores, -np.inf)
    count = min(AGREEING, len(scores) - 1)
    right = np.zeros(scores.shape, dtype=np.bool_)
    np.put_along_axis(right, np.argpartition(-scores, count - 1, axis=1)[:, :count], values=True, axis=1)
    return right


def _best(points: list[dict[str, Any]]) -> str:
    """Return the order with the highest mean recall between the ends."""
    orders = dict.fromkeys(str(point["order"]) for point in points)
    mean: dict[str, float] = {}
    for order in orders:
        mean[order] = float(np.mean([point["recall_at_1"] for point in points if point["order"] == order]))
    return max(mean, key=lambda order: mean[order])


def lines(plan: dict[str, Any]) -> dict[str, str]:
    """Return a plan as lines for people."""
    rate = plan["vectors_per_second"]
    said = {
        "from": f"{plan['from']} to {plan['to']}, {plan['vectors']} vectors, {plan['bytes'] / 1e6:.1f} MB of new ones",
        "rate": "unknown, the vectors are made already"
        if rate is None
        else f"{rate:.0f} vectors a second, measured here",
    }
    if plan["hours"] is not None:
        cost = "" if plan["cost"] is None else f", {plan['cost']:.2f} {plan['currency']}"
        said["time"] = f"{plan['hours']:.2f} hours{cost}"
    said["predicted"] = f"on {plan['sample']} of them, by {plan['metric']}; best order: {plan['best_order']}"
    for order, queries in dict.fromkeys((point["order"], point["queries"]) for point in plan["curve"]):
        own: list[Point] = [
            Point(**{key: point[key] for key in ("fraction", "recall_at_1", "recall_at_10", "flips")})
            for point in plan["curve"]
            if (point["order"], point["queries"]) == (order, queries)
        ]
        shown = "; ".join(f"{point.fraction:.0%} {point.recall_at_1:.3f} (lost {point.flips:.3f})" for point in own)
        said[f"{order}, queries of {queries}"] = shown
    return said
