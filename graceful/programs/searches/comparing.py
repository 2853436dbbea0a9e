"""`graceful compare-search`: the same queries in two indices, compared result by result. Driver."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError, SpecError
from graceful.index import Index
from graceful.index.manifest import Manifest
from graceful.metrics import search_results
from graceful.metrics.search_results import Relevance
from graceful.programs.searches.given import Given, mapped, read_grades, read_queries, searched
from graceful.report import Measurement
from graceful.storage import write_text

LABEL, GROUP = "label", "group"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asks for.

    Attributes:
        a, b: Folders of the indices.
        queries: Files of the queries' vectors, one for each model; `SPACE=FILE` where a file does not say its space.
        relevance: File of judged pairs or clicks; None: equal labels, where both sides have a column `label`.
        adapter: Folder of an adapter that maps the queries with which B is searched; None: none.
        slices: Columns of the queries by whose values they are divided.
        k: Results that are compared.
        worst: Queries that are listed.
        html: Page to write; None: none.
        seed: The seed of the bootstrap.
    """

    a: str
    b: str
    queries: Sequence[str]
    relevance: str | None = None
    adapter: str | None = None
    slices: Sequence[str] = ()
    k: int = 10
    worst: int = 20
    html: str | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two searches have in common, as values that a table and a page show.

    Attributes:
        a, b: Index, snapshot and number of vectors of each.
        k: Results of each query.
        metrics: Name -> measurement, over all queries.
        slices: Column, value and the same metrics for each part of the queries.
        worst: Queries, those that got worst first, with the results of both.
        notes: Caveats, one sentence each.
    """

    a: Mapping[str, Any]
    b: Mapping[str, Any]
    k: int
    queries: int
    metrics: Mapping[str, Measurement]
    slices: Sequence[tuple[str, str, Mapping[str, Measurement]]]
    worst: Sequence[Mapping[str, Any]]
    notes: tuple[str, ...] = field(default=())

    def document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "a": dict(self.a),
            "b": dict(self.b),
            "k": self.k,
            "queries": self.queries,
            "metrics": _values(self.metrics),
            "slices": [
                {"column": column, "value": value, "metrics": _values(found)} for column, value, found in self.slices
            ],
            "worst": [dict(row) for row in self.worst],
            "notes": list(self.notes),
        }


def _values(metrics: Mapping[str, Measurement]) -> dict[str, Any]:
    return {name: asdict(measurement) for name, measurement in metrics.items()}


def compare(asked: Asked) -> Comparison:
    """Search both indices with the same queries and compare what they return.

    Raises:
        SpecError: Queries of models that an index has no vectors of, or a column that the queries have not.
        DataError: A file is not what it should be.
    """
    given = read_queries(asked.queries)
    sides = (given, given if asked.adapter is None else mapped(given, asked.adapter))
    indices = [Index.open(folder) for folder in (asked.a, asked.b)]
    heads = [index.head() for index in indices]
    results = [searched(index, head, side, k=asked.k) for index, head, side in zip(indices, heads, sides, strict=True)]
    relevance, notes = _relevance(asked, given, indices, heads, results)
    groups = given.payload.get(GROUP)
    metrics = search_results.measured(results[0], results[1], relevance, groups, seed=asked.seed)
    about = [
        {"index": folder, "snapshot": head.number, "vectors": head.count, "serving": head.serving}
        for folder, head in zip((asked.a, asked.b), heads, strict=True)
    ]
    found = Comparison(
        a=about[0],
        b=about[1],
        k=asked.k,
        queries=len(given.ids),
        metrics=metrics,
        slices=[part for column in asked.slices for part in _sliced(column, given, results, relevance, asked.seed)],
        worst=_worst(asked.worst, given, results, relevance),
        notes=notes,
    )
    if asked.html is not None:
        from graceful.views.search_difference import page

        write_text(Path(asked.html), page(found))
    return found


# --- relevance, slices, the worst -------------------------------------------------------------------------------------


def _relevance(
    asked: Asked, given: Given, indices: Sequence[Index], heads: Sequence[Manifest], results: Sequence[NDArray[np.str_]]
) -> tuple[Relevance | None, tuple[str, ...]]:
    if asked.relevance is not None:
        grades = read_grades(Path(asked.relevance))
        relevance = Relevance.of_grades(given.ids, (results[0], results[1]), grades)
        if not relevance.judged.any():
            raise DataError(
                f"{asked.relevance}: judges none of these queries; its queries must have the ids of --queries"
            )
        return relevance, ()
    if LABEL not in given.payload or not all(LABEL in head.payload for head in heads):
        note = "no relevance is known: overlap alone is measured; give --relevance, or vectors with a column label"
        return None, (note,)
    tables = [_labels(index, head) for index, head in zip(indices, heads, strict=True)]
    labels = [
        np.array([[table.get(name, "") for name in row] for row in side.tolist()])
        for table, side in zip(tables, results, strict=True)
    ]
    counts = [Counter(table.values()) for table in tables]
    most = {label: max(count[label] for count in counts) for label in {*counts[0], *counts[1]}}
    queries = given.payload[LABEL].astype(np.str_)
    stored = np.array([any(name in table for table in tables) for name in given.ids.tolist()], dtype=np.bool_)
    return Relevance.of_labels(queries, (labels[0], labels[1]), most, stored=stored), ()


def _labels(index: Index, head: Manifest) -> dict[str, str]:
    view = index.view(head)
    return {
        name: str(label)
        for space, count in head.counts.items()
        if count
        for part in [view.read(space)]
        for name, label in zip(part.ids.tolist(), part.payload[LABEL].tolist(), strict=True)
    }


def _sliced(
    column: str, given: Given, results: Sequence[NDArray[np.str_]], relevance: Relevance | None, seed: int
) -> list[tuple[str, str, Mapping[str, Measurement]]]:
    if column not in given.payload:
        raise SpecError(
            f"--slice {column}: the queries have no such column; they have {', '.join(given.payload) or 'none'}"
        )
    values = given.payload[column].astype(np.str_)
    groups = given.payload.get(GROUP)
    parts: list[tuple[str, str, Mapping[str, Measurement]]] = []
    for value, _ in Counter(values.tolist()).most_common():
        rows = np.flatnonzero(values == value)
        found = search_results.measured(
            results[0][rows],
            results[1][rows],
            None if relevance is None else relevance.take(rows),
            None if groups is None else groups[rows],
            seed=seed,
        )
        parts.append((column, str(value), found))
    return parts


def _worst(
    count: int, given: Given, results: Sequence[NDArray[np.str_]], relevance: Relevance | None
) -> list[dict[str, Any]]:
    first, second = results
    similarity = search_results.rank_biased_overlap(first, second)
    gains = (
        None
        if relevance is None
        else [search_results.gain(side, relevance.ideal) for side in (relevance.first, relevance.second)]
    )
    rows = []
    for row in search_results.worst(first, second, relevance)[:count].tolist():
        entry: dict[str, Any] = {"query": str(given.ids[row])}
        entry |= {name: _plain(column[row]) for name, column in given.payload.items()}
        entry["rank_biased_overlap"] = float(similarity[row])
        if gains is not None:
            entry |= {f"{letter}_ndcg": _plain(values[row]) for letter, values in zip("ab", gains, strict=True)}
        entry |= {
            letter: [name for name in side[row].tolist() if name] for letter, side in zip("ab", results, strict=True)
        }
        rows.append(entry)
    return rows


def _plain(value: Any) -> Any:
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
