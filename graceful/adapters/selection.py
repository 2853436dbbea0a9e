"""Which map, and how much of it: chosen on validation pairs by how well neighbours agree, without labels. Driver."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.adapters.bundle import Side
from graceful.adapters.closed_form import RidgePath, procrustes
from graceful.adapters.maps import Kind, Map, unit
from graceful.adapters.mlp import Recipe, residual_mlp
from graceful.adapters.sphere import slerp
from graceful.errors import DataError, SpecError

RIDGES = (1e-3, 1e-2, 1e-1)
RANK_SHARES = (0.125, 0.25, 0.5, 1.0)
"""Ranks that are tried, as shares of the shorter of the two lengths."""
HIDDEN = (512, 1024)
SHARES = tuple(step / 10 for step in range(1, 11))
"""Shares of the angle between old and mapped query that are tried."""
NEIGHBOURS = 10
_CELLS = 4_000_000

Progress = Callable[[Mapping[str, object]], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Embeddings of the same samples by two models.

    Attributes:
        source: [N, a] by the model whose vectors are mapped.
        target: [N, b] by the other one.
    """

    source: NDArray[np.floating[Any]]
    target: NDArray[np.floating[Any]]

    def __post_init__(self) -> None:
        if len(self.source) != len(self.target):
            raise DataError(f"adapter: {len(self.source)} vectors of one model and {len(self.target)} of the other")

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tried:
    """One candidate.

    Attributes:
        kind: The kind of the map.
        options: What it was fitted with.
        agreement: The agreement of its neighbours on the validation pairs, see `agreement`.
        seconds: That fitting it took.
        map: The map itself.
        share: The share of the angle between old and mapped query; 1: the mapped query alone.
    """

    kind: Kind
    options: Mapping[str, float]
    agreement: float
    seconds: float
    map: Map = field(repr=False)
    share: float = 1.0

    def row(self) -> dict[str, Any]:
        """Return it as JSON values, without the map."""
        return {
            "kind": self.kind,
            **self.options,
            "share": self.share,
            "agreement": self.agreement,
            "seconds": round(self.seconds, 3),
            "numbers": self.map.numbers,
        }


def fitted(train: Pairs, validation: Pairs, kinds: Sequence[Kind], *, seed: int) -> Iterator[tuple[Kind, Any, Map]]:
    """Yield the candidates of some kinds with what they were fitted with."""
    shorter = min(train.source.shape[1], train.target.shape[1])
    if "procrustes" in kinds:
        yield "procrustes", {}, procrustes(train.source, train.target)
    if "low_rank" in kinds:
        for ridge in RIDGES:
            path = RidgePath.of(train.source, train.target, ridge=ridge)
            for rank in sorted({max(1, round(share * shorter)) for share in RANK_SHARES}):
                yield "low_rank", {"ridge": ridge, "rank": rank}, path.at(rank)
    if "mlp" in kinds:
        for hidden in HIDDEN:
            recipe = Recipe(hidden=hidden, seed=seed)
            held_out = (validation.source, validation.target)
            yield (
                "mlp",
                {"hidden": hidden},
                residual_mlp(train.source, train.target, validation=held_out, recipe=recipe),
            )


def choose(
    train: Pairs,
    validation: Pairs,
    *,
    kinds: Sequence[Kind],
    seed: int = 0,
    side: Side = "queries",
    old: bool = False,
    progress: Progress | None = None,
) -> tuple[Tried, list[Tried]]:
    """Fit the candidates and return the one whose neighbours agree best, and all of them.

    Args:
        train: Pairs that maps are fitted on.
        validation: Pairs of other samples, which decide.
        kinds: The kinds of the maps.
        seed: The seed of networks.
        side: queries: mapped queries search the target's vectors of the training pairs. gallery: the target's queries
            search mapped vectors, those of the validation pairs, because maps know the training pairs too well.
        old: With side queries, also try points between the target of a query and its mapped source, for searches
            that run both models; the result is then the best of each kind with its best share.
        progress: Called with each candidate.

    Raises:
        DataError: Fewer than two pairs on either side.
    """
    if len(train) < 2 or len(validation) < 2:
        raise DataError(
            f"adapter: needs at least two pairs to fit on and two to choose on, got {len(train)} and {len(validation)}"
        )
    tried = []
    begin = time.perf_counter()
    for kind, options, candidate in fitted(train, validation, kinds, seed=seed):
        seconds = time.perf_counter() - begin
        value = _agreement(candidate(validation.source), train, validation, side)
        tried.append(Tried(kind=kind, options=options, agreement=value, seconds=seconds, map=candidate))
        if progress is not None:
            progress({"stage": "adapter", **tried[-1].row()})
        begin = time.perf_counter()
    if old:
        if side == "gallery":
            raise SpecError("adapter: a point between old and mapped query is for side queries; leave one of them out")
        tried = [_interpolated(best, train, validation) for best in _best_of_each(tried)]
    return max(tried, key=lambda candidate: candidate.agreement), tried


def _best_of_each(tried: Sequence[Tried]) -> list[Tried]:
    return [
        max((item for item in tried if item.kind == kind), key=lambda item: item.agreement)
        for kind in dict.fromkeys(item.kind for item in tried)
    ]


def _interpolated(tried: Tried, train: Pairs, validation: Pairs) -> Tried:
    mapped = tried.map(validation.source)
    values = {
        share: _agreement(slerp(validation.target, mapped, share), train, validation, "queries") for share in SHARES
    }
    share = max(values, key=lambda share: values[share])
    return Tried(
        kind=tried.kind,
        options=tried.options,
        agreement=values[share],
        seconds=tried.seconds,
        map=tried.map,
        share=share,
    )


def _agreement(mapped: NDArray[np.float32], train: Pairs, validation: Pairs, side: Side) -> float:
    """Return the agreement of mapped validation vectors with what the new version finds on its own."""
    if side == "queries":
        return agreement(mapped, train.target, validation.source, train.source)
    return agreement(validation.target, mapped, validation.target, validation.target)


def agreement(
    mapped: NDArray[np.floating[Any]],
    mapped_gallery: NDArray[np.floating[Any]],
    paragon: NDArray[np.floating[Any]],
    paragon_gallery: NDArray[np.floating[Any]],
    *,
    k: int = NEIGHBOURS,
) -> float:
    """Return the mean share of the k nearest items of the paragon that are also among the k nearest of a mapped query.

    Args:
        mapped: [Q, b] queries as the adapter maps them.
        mapped_gallery: [G, b] what they search.
        paragon: [Q, a] the same queries by the new model.
        paragon_gallery: [G, a] the same items by the new model.
        k: Neighbours; fewer where the gallery has fewer.
    """
    first, second = neighbours(mapped, mapped_gallery, k=k), neighbours(paragon, paragon_gallery, k=k)
    shared = (first[:, :, None] == second[:, None, :]).any(axis=2)
    return float(shared.mean())


def neighbours(queries: NDArray[np.floating[Any]], gallery: NDArray[np.floating[Any]], *, k: int) -> NDArray[np.int64]:
    """Return the positions of the k nearest items by cosine, [Q, k], in no order; float32."""
    k = min(k, len(gallery))
    items = unit(gallery).astype(np.float32).T
    step = max(1, _CELLS // len(gallery))
    parts = []
    for start in range(0, len(queries), step):
        scores = unit(queries[start : start + step]).astype(np.float32) @ items
        parts.append(np.argpartition(-scores, k - 1, axis=1)[:, :k])
    return np.concatenate(parts) if parts else np.zeros((0, k), dtype=np.int64)
