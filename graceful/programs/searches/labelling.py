"""`graceful label-next`: the disagreements of two versions, in the order in which labels decide a bound. Driver."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError, SpecError
from graceful.files import guarded
from graceful.index import Index
from graceful.metrics.next_labels import Standing, flip_probability, labels_until_decided, order
from graceful.programs.outputs import recorded_predictions
from graceful.programs.searches.given import mapped, read_grades, read_queries, searched
from graceful.storage import write_text

TABLES = (".csv", ".tsv")
DRAWS = 1000
UNSURE = 0.5
"""Confidence where a file gives none."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asks for.

    Attributes:
        old, new: Files of predictions (.csv, .tsv: id, answer and perhaps confidence; .npz as recorded beside a
            version), or folders of indices.
        bound: On the negative flip rate, or of searches on the retrieval NFR.
        labels: File of what is known; of searches, judged pairs; None: nothing is.
        queries: Of searches: vectors of the queries, one file for each model.
        adapter: Of searches: maps the queries with which `new` is searched.
        count: How many are listed.
        out: File to write all of them to, .csv; None: none.
        seed: The seed of the prediction.
    """

    old: str
    new: str
    bound: float
    labels: str | None = None
    queries: Sequence[str] = ()
    adapter: str | None = None
    count: int = 20
    out: str | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Answers of both versions for the same samples.

    Attributes:
        ids: [N]
        old, new: [N] their answers; of searches, the first results.
        probability: [N] of a negative flip where they differ.
        flips: [N] 1: known to be a negative flip; 0: known to be none; -1: not known.
    """

    ids: NDArray[np.str_]
    old: NDArray[np.str_]
    new: NDArray[np.str_]
    probability: NDArray[np.float64]
    flips: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Next:
    """What is known, and what to label next, as JSON values."""

    standing: Standing
    labels: Mapping[str, float] | None
    rows: Sequence[Mapping[str, Any]]
    kind: str

    def document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        low, high = self.standing.range
        return {
            **asdict(self.standing),
            "metric": self.kind,
            "state": self.standing.state,
            "lowest": low,
            "highest": high,
            "to_hold": self.standing.to_hold,
            "to_pass": self.standing.to_pass,
            "samples_needed": self.standing.samples_needed if self.standing.state == "too few" else None,
            "labels": None if self.labels is None else dict(self.labels),
            "next": [dict(row) for row in self.rows],
        }


def label_next(asked: Asked) -> Next:
    """Find the disagreements of two versions and put them in order.

    Raises:
        SpecError: One is a file and the other a folder, or searches without queries.
        DataError: A file is not what it should be, or the two share no sample.
    """
    folders = [Path(side).is_dir() for side in (asked.old, asked.new)]
    if any(folders) != all(folders):
        raise SpecError(f"label-next {asked.old} {asked.new}: give two files of predictions, or two indices")
    if all(folders) != bool(asked.queries):
        raise SpecError("label-next: --queries are for two indices, and indices need them")
    answers = _searches(asked) if all(folders) else _predictions(asked)
    differ = answers.old != answers.new
    known = answers.flips >= 0
    standing = Standing.of(
        samples=len(answers.ids),
        disagree=int(differ.sum()),
        flips=int((differ & (answers.flips == 1)).sum()),
        no_flips=int((differ & (answers.flips == 0)).sum()),
        bound=asked.bound,
    )
    unlabelled = np.flatnonzero(differ & ~known)
    rows = [_row(answers, row) for row in unlabelled[order(answers.probability[unlabelled], to_hold=standing.to_hold)]]
    if asked.out is not None:
        _write(Path(asked.out), rows)
    kind = "retrieval_nfr" if all(folders) else "negative_flip_rate"
    labels = _predicted(standing, answers.probability[unlabelled], seed=asked.seed)
    return Next(standing=standing, labels=labels, rows=rows[: asked.count], kind=kind)


def _predicted(standing: Standing, probabilities: NDArray[np.float64], *, seed: int) -> dict[str, float] | None:
    """Return how many more labels decide it: what no answer can undercut, what is expected, what always suffices."""
    if standing.state != "open":
        return None
    needed = labels_until_decided(
        probabilities, to_hold=standing.to_hold, to_pass=standing.to_pass, draws=DRAWS, seed=seed
    )
    low, high = np.quantile(needed, [0.1, 0.9])
    return {
        "at_least": float(min(standing.to_hold, standing.to_pass)),
        "expected": float(needed.mean()),
        "low": float(low),
        "high": float(high),
        "at_most": float(len(probabilities)),
    }


def _row(answers: Answers, row: int) -> dict[str, Any]:
    return {
        "id": str(answers.ids[row]),
        "old": str(answers.old[row]),
        "new": str(answers.new[row]),
        "flip_probability": round(float(answers.probability[row]), 4),
    }


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    lines = ["id,old,new,flip_probability"]
    lines += [",".join(_quoted(str(value)) for value in row.values()) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n') else text


# --- classification ---------------------------------------------------------------------------------------------------


def _predictions(asked: Asked) -> Answers:
    old, new = (_read(Path(side)) for side in (asked.old, asked.new))
    ids = sorted(old.keys() & new.keys())
    if not ids:
        raise DataError(f"{asked.old} and {asked.new}: share no id; give the answers of both for the same samples")
    labels = {} if asked.labels is None else {row[0]: row[1] for row in _table(Path(asked.labels), columns=(2, 2))}
    confidence = [np.array([side[name][1] for name in ids]) for side in (old, new)]
    answers = [np.array([side[name][0] for name in ids]) for side in (old, new)]
    flips = np.array([_flip(labels.get(name), old[name][0], new[name][0]) for name in ids], dtype=np.int64)
    return Answers(
        ids=np.array(ids),
        old=answers[0],
        new=answers[1],
        probability=flip_probability(confidence[0], confidence[1]),
        flips=flips,
    )


def _flip(label: str | None, old: str, new: str) -> int:
    return -1 if label is None else int(label == old != new)


def _read(path: Path) -> dict[str, tuple[str, float]]:
    """Return answer and confidence of each sample."""
    if path.suffix == ".npz":
        found = recorded_predictions.load(path)
        sure = np.full(len(found.ids), UNSURE) if found.confidence is None else found.confidence
        rows = zip(found.ids.tolist(), found.predicted.tolist(), sure.tolist(), strict=True)
        return {str(name): (str(answer), float(value)) for name, answer, value in rows}
    answers = {}
    for name, answer, *rest in _table(path, columns=(2, 3)):
        try:
            confidence = float(rest[0]) if rest else UNSURE
        except ValueError as e:
            raise DataError(f"{path}: the confidence of {name} must be a number in [0, 1], got {rest[0]!a}") from e
        if not 0.0 <= confidence <= 1.0:
            raise DataError(f"{path}: the confidence of {name} must be in [0, 1], got {confidence:g}")
        if name in answers:
            raise DataError(f"{path}: id {name} occurs twice; give one answer for each sample")
        answers[name] = (answer, confidence)
    return answers


def _table(path: Path, *, columns: tuple[int, int]) -> list[list[str]]:
    """Return the rows of a .csv or .tsv file below its head, which begins with `id`, if it has one."""
    if path.suffix not in TABLES:
        raise SpecError(f"{path}: must be a .csv or .tsv file: id, answer and, of predictions, perhaps confidence")
    with guarded(path, "read"), path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",") if row]
    rows = rows[1:] if rows and rows[0][0] == "id" else rows
    for number, row in enumerate(rows, start=1):
        if not columns[0] <= len(row) <= columns[1]:
            wanted = " or ".join(map(str, sorted(set(columns))))
            raise DataError(f"{path}: row {number} must have {wanted} columns, got {len(row)}")
    return rows


# --- searches ---------------------------------------------------------------------------------------------------------


def _searches(asked: Asked) -> Answers:
    """Return the first results of two searches; a result near the top of the other search is likelier to be right."""
    given = read_queries(asked.queries)
    sides = (given, given if asked.adapter is None else mapped(given, asked.adapter))
    results = []
    for folder, side in zip((asked.old, asked.new), sides, strict=True):
        index = Index.open(folder)
        results.append(searched(index, index.head(), side, k=10))
    first, second = (side[:, 0] for side in results)
    sure = [
        UNSURE * (1.0 + _reciprocal_rank(top, other)) / 2 for top, other in ((first, results[1]), (second, results[0]))
    ]
    grades = {} if asked.labels is None else read_grades(Path(asked.labels))
    rows = zip(given.ids.tolist(), first.tolist(), second.tolist(), strict=True)
    flips = np.array([_lost(grades.get((name, a)), grades.get((name, b))) for name, a, b in rows], dtype=np.int64)
    return Answers(ids=given.ids, old=first, new=second, probability=flip_probability(sure[0], sure[1]), flips=flips)


def _reciprocal_rank(items: NDArray[np.str_], results: NDArray[np.str_]) -> NDArray[np.float64]:
    """Return [Q] 1 / rank of an item in a list of results; 0 where it is not in it."""
    hit = results == items[:, None]
    return np.asarray(np.where(hit.any(axis=1), 1.0 / (hit.argmax(axis=1) + 1.0), 0.0))


def _lost(old: float | None, new: float | None) -> int:
    """Return whether a query is lost, as far as both first results, or the one that settles it, are judged."""
    if old == 0.0 or (new is not None and new > 0.0):
        return 0
    return -1 if old is None or new is None else 1
