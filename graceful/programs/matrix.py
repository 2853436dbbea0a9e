"""Every version against every version: retrieval and negative flips as matrices. Runs in the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from graceful.chain import Predecessor
from graceful.metrics import compatibility, flips
from graceful.metrics.retrieval import mean_average_precision, rank, recall_at_k
from graceful.programs.evaluate import answers, embeddings_of, predictions_of, split_or
from graceful.spec import RefreshSpec
from graceful.tasks.base import Task

SHOWN = {"recall_at_1": "R@1, query (row) on gallery (column)", "negative_flip_rate": "NFR, row against column"}


def matrix(spec: RefreshSpec, task: Task, versions: Sequence[Predecessor]) -> dict[str, Any]:
    """Measure all pairs.

    Args:
        spec: For batch size, bootstrap and seed.
        task: Whose test, query and gallery splits are used.
        versions: Oldest first.

    Returns:
        `versions`; `error`, one per version; `negative_flip_rate` [newer][older], None elsewhere; and with
        `evaluate.retrieval`: `recall_at_1` and `map` [query][gallery], and for each of them `average_compatibility` on
        the versions' own diagonal, `backward_compatibility`, `forward_compatibility`, `average_multimodel_accuracy`.
    """
    test, names, size = task.samples("test"), [version.name for version in versions], spec.evaluate.batch_size
    said = [answers(version, test, size) for version in versions]
    predicted = [predictions_of(version, test, one) for version, one in zip(versions, said, strict=True)]
    found: dict[str, Any] = {"versions": names, "error": [], "data": {"test": test.digest}}
    flipped: dict[tuple[str, str], float | None] = {}
    for new, (name, mine) in enumerate(zip(names, predicted, strict=True)):
        found["error"].append(flips.alone(mine, draws=100, seed=0)["error_rate"].value)
        for old in range(new):
            flipped[name, names[old]] = flips.compare(mine, predicted[old], draws=100, seed=0)[
                "negative_flip_rate"
            ].value
    found["negative_flip_rate"] = compatibility.compatibility_matrix(flipped, names)
    if not spec.evaluate.retrieval:
        return found
    query, gallery = split_or(task, "query", test), split_or(task, "gallery", test)
    asked, kept = (
        [embeddings_of(part, one) for one in (said if part is test else [answers(v, part, size) for v in versions])]
        for part in (query, gallery)
    )
    cells: dict[str, dict[tuple[str, str], float | None]] = {"recall_at_1": {}, "map": {}}
    for left, queries in zip(names, asked, strict=True):
        for right, items in zip(names, kept, strict=True):
            ranking = rank(queries.aligned(items.size), items)
            cells["recall_at_1"][left, right] = recall_at_k(ranking, draws=100).value
            cells["map"][left, right] = mean_average_precision(ranking, draws=100).value
    found["data"] |= {"query": query.digest, "gallery": gallery.digest}
    for metric, values in cells.items():
        found[metric] = compatibility.compatibility_matrix(values, names)
        found[f"summary_{metric}"] = _summary(found[metric])
    return found


def _summary(cells: compatibility.Matrix) -> dict[str, Any]:
    measured = {
        "average_compatibility": compatibility.average_compatibility(cells),
        "backward_compatibility": compatibility.backward_compatibility(cells),
        "forward_compatibility": compatibility.forward_compatibility(cells),
        "average_multimodel_accuracy": compatibility.average_multimodel_accuracy(cells),
    }
    return {name: asdict(one) for name, one in measured.items()}


def matrix_tables(document: Mapping[str, Any]) -> list[Table]:
    """The matrices as tables for the terminal, in percent."""
    tables = []
    for metric, title in SHOWN.items():
        if metric not in document:
            continue
        table = Table(title=title, title_justify="left", caption="percent", caption_justify="left")
        for column in ("", *document["versions"]):
            table.add_column(column, justify="right" if column else "left")
        for name, row in zip(document["versions"], document[metric], strict=True):
            table.add_row(name, *("-" if cell is None else f"{100 * cell:.2f}" for cell in row))
        tables.append(table)
    return tables
