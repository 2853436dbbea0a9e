"""Negative flips and retrieval between every pair of versions, as matrices made from their outputs. In the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from graceful.metrics import compatibility as compat
from graceful.metrics.compatibility import Searches, Side
from graceful.metrics.inputs import VersionOutputs
from graceful.metrics.predictions import Predictions, join
from graceful.metrics.retrieval import Ranking

RETRIEVAL = ("recall_at_1", "map")


def pairs(
    versions: Sequence[VersionOutputs],
    *,
    names: Sequence[str] | None = None,
    references: Mapping[str, Sequence[VersionOutputs]] | None = None,
    searches: Searches | None = None,
) -> dict[str, Any]:
    """Measure all pairs.

    Args:
        versions: Oldest first.
        names: Names of the whole chain, oldest first; cells without outputs are None. None: those of these versions.
        references: Version name -> the unconstrained runs of its recipe, where there are any.
        searches: Those of the report that this is part of; None: of these matrices alone.

    Returns:
        JSON values. `versions`; `error`, one per version; `negative_flip_rate` [newer][older], None elsewhere. With
        embeddings also `embedding_sizes`; `compat_slice` [query][gallery], how many components that pair is compared
        on; `recall_at_1` and `map` [query][gallery], below the diagonal a new client on an old gallery, above it an
        old client on a new gallery; `independent`, for each metric the self-test of each version's unconstrained run,
        None where there is none; and for each metric `summary_<metric>`.
    """
    names = [version.name for version in versions] if names is None else list(names)
    flipped = {
        (new.name, old.name): flipped_share(new.predictions, old.predictions)
        for index, new in enumerate(versions)
        for old in versions[:index]
    }
    errors = {version.name: wrong_share(version.predictions) for version in versions}
    document: dict[str, Any] = {
        "versions": names,
        "error": [errors.get(name) for name in names],
        "negative_flip_rate": compat.compatibility_matrix(flipped, names),
    }
    sizes = {version.name: version.gallery.size for version in versions if version.gallery is not None}
    if len(sizes) < len(versions):
        return document
    document["embedding_sizes"] = [sizes.get(name) for name in names]
    document["compat_slice"] = [
        [sizes[min(left, right, key=names.index)] if {left, right} <= sizes.keys() else None for right in names]
        for left in names
    ]
    search = searches or Searches()
    cells, independent = _searched(versions, search), _independent(names, references or {}, search)
    document["independent"] = independent
    for metric, values in cells.items():
        document[metric] = compat.compatibility_matrix(values, names)
        document[f"summary_{metric}"] = summary(document[metric], independent[metric])
    return document


def _searched(versions: Sequence[VersionOutputs], search: Searches) -> dict[str, dict[tuple[str, str], float | None]]:
    cells: dict[str, dict[tuple[str, str], float | None]] = {metric: {} for metric in RETRIEVAL}
    for new_index, left in enumerate(versions):
        for old_index, right in enumerate(versions):
            assert left.queries is not None
            assert right.gallery is not None
            older: Side = "queries" if new_index < old_index else "gallery"
            ranking = search(left.queries, right.gallery, older=older)
            for metric, value in _scores(ranking).items():
                cells[metric][left.name, right.name] = value
    return cells


def _scores(ranking: Ranking) -> dict[str, float | None]:
    """Return recall at 1 and mAP without intervals, for which the cells of a matrix have no room."""
    eligible = ranking.judged
    if not eligible.any():
        return dict.fromkeys(RETRIEVAL)
    hits, precision = ranking.first_hit[eligible] == 1, ranking.average_precision[eligible]
    return {"recall_at_1": float(hits.mean()), "map": float(precision.mean())}


def flipped_share(new: Predictions, old: Predictions) -> float | None:
    """Return the NFR without its interval; None where the two have no id in common that both can answer."""
    joined = join(new, old)
    return float(joined.negative_flips.mean()) if len(joined) else None


def wrong_share(version: Predictions) -> float | None:
    """Return the error rate without its interval, on the ids whose class it knows; None without such ids."""
    joined = join(version, version)
    return float((~joined.ok_new).mean()) if len(joined) else None


def _independent(
    names: Sequence[str], references: Mapping[str, Sequence[VersionOutputs]], search: Searches
) -> dict[str, list[float | None]]:
    """Return the self-tests of unconstrained runs, averaged over a version's runs."""
    self_tests: dict[str, list[float | None]] = {metric: [] for metric in RETRIEVAL}
    for name in names:
        sides = [(run.queries, run.gallery) for run in references.get(name, ())]
        scored = [
            _scores(search(queries, gallery, older="gallery"))
            for queries, gallery in sides
            if queries is not None and gallery is not None
        ]
        for metric, values in self_tests.items():
            values.append(_mean([scores[metric] for scores in scored]))
    return self_tests


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def summary(cells: compat.Matrix, independent: Sequence[float | None]) -> dict[str, Any]:
    """Return the matrix in a few numbers, each with the reason where it is None.

    Returns:
        `average_compatibility` on the versions' own diagonal and `average_compatibility_independent` on that of their
        unconstrained runs, either with its number of `ties`; `backward_compatibility`, `forward_compatibility`,
        `average_multimodel_accuracy`; of the newest version `self_discount` and `update_gain` by older version, None
        where it has no unconstrained run.
    """
    own = compat.average_compatibility(cells)
    other = compat.average_compatibility(cells, independent=independent)
    document: dict[str, Any] = {
        "average_compatibility": asdict(own) | {"ties": compat.ties(cells)},
        "average_compatibility_independent": asdict(other) | {"ties": compat.ties(cells, independent=independent)},
        "backward_compatibility": asdict(compat.backward_compatibility(cells)),
        "forward_compatibility": asdict(compat.forward_compatibility(cells)),
        "average_multimodel_accuracy": asdict(compat.average_multimodel_accuracy(cells)),
        "self_discount": None,
        "update_gain": None,
    }
    best, last = independent[-1], cells[-1]
    if best is None or any(cell is None for row in cells for cell in row):
        return document
    document["self_discount"] = compat.self_discount(self_test=last[-1], paragon=best)  # type: ignore[arg-type]
    document["update_gain"] = [
        asdict(compat.update_gain(cross=last[old], old=cells[old][old], paragon=best))  # type: ignore[arg-type]
        for old in range(len(cells) - 1)
    ]
    return document
