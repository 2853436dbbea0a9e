"""An adapter between two files of vectors of the same ids: nothing is run, and nothing is registered. Driver."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.adapters import Pairs, Side
from graceful.adapters.bundle import End
from graceful.constraints import Constraint, implied_direction
from graceful.errors import DataError, SpecError
from graceful.index import Space, Vectors, files
from graceful.metrics.judgments import Judgments
from graceful.metrics.retrieval import Embeddings
from graceful.programs.adapting.fitting import Plan, fitted, summary, write
from graceful.programs.adapting.material import Material, Searched
from graceful.programs.adapting.program import Wanted
from graceful.programs.runs.run import Progress, silent
from graceful.programs.searches.given import model_digest, read_grades
from graceful.storage import sha256_file, sha256_json, write_json

SPLITS = ("train", "validation", "query", "gallery")
SHARES = {"gallery": 0.7, "validation": 0.1}
"""Shares of the ids in each split, by the hash of an id, where there is no column `split`; the other ids are
queries."""
SPLIT, LABEL, GROUP = "split", "label", "group"


def adapt_files(wanted: Wanted, out: Path, *, relevance: str | None, progress: Progress = silent) -> dict[str, Any]:
    """Fit, measure and judge an adapter between two files, and write it to a folder.

    Args:
        wanted: What the command line asks for; old and new are files.
        out: The folder: `adapter.json`, `adapter.safetensors`, and beside them report and verdict.
        relevance: File of judged pairs; None: items with the label of a query answer it.
        progress: Called with each candidate.

    Raises:
        SpecError: The files do not fit each other.
        DataError: A file is none of vectors, or nothing says what answers a query.
    """
    begin = time.perf_counter()
    found = _material(Path(wanted.old), Path(wanted.new), wanted, relevance)
    plan = Plan(
        folder=out,
        model="adapter",
        name=wanted.name or out.name,
        kinds=wanted.kinds,
        interpolate=wanted.interpolate,
        constraints=[_constraint(metric, bound) for metric, bound in wanted.bounds.items()],
        seed=wanted.seed,
    )
    judged = fitted(plan, found, against=found.old.name, progress=progress)
    write(out, judged)
    result = {
        "outcome": str(judged.verdict.outcome),
        "reasons": [finding.reason for finding in judged.verdict.findings],
        **summary(judged, out),
        "report": str(out / "report.json"),
        "seconds": round(time.perf_counter() - begin, 1),
    }
    write_json(out / "result.json", result)
    return result


def _constraint(metric: str, bound: float) -> Constraint:
    direction = implied_direction(metric)
    assert direction is not None, "metrics of adapters have one"
    return Constraint(metric=metric, direction=direction, bound=bound)


def _material(old_path: Path, new_path: Path, wanted: Wanted, relevance: str | None) -> Material:
    (old, old_space), (new, new_space) = (_read(path) for path in (old_path, new_path))
    missing = sorted(set(old.ids.tolist()) ^ set(new.ids.tolist()))
    if missing:
        raise SpecError(
            f"{old_path} and {new_path}: {len(missing)} ids are in one of them alone, e.g. {missing[0]!a}; give vectors"
            " of the same samples"
        )
    old, new = (vectors.take(np.argsort(vectors.ids, kind="stable")) for vectors in (old, new))
    payload = {**new.payload, **old.payload}
    rows = _rows(old.ids, payload.get(SPLIT), where=f"{old_path} and {new_path}")
    judgments, labels = _relevance(old, payload, relevance, where=f"{old_path} and {new_path}")

    def searched(vectors: Vectors) -> Searched:
        groups = payload.get(GROUP)
        sides = {
            name: Embeddings(
                ids=vectors.ids[rows[name]],
                labels=labels[rows[name]],
                vectors=vectors.vectors[rows[name]],
                groups=None if groups is None else groups[rows[name]],
                judgments=judgments,
            )
            for name in ("query", "gallery")
        }
        return Searched(queries=sides["query"], gallery=sides["gallery"])

    def pairs(name: str) -> Pairs:
        chosen = rows[name]
        if len(chosen) > wanted.pairs:
            chosen = chosen[np.linspace(0, len(chosen) - 1, wanted.pairs).astype(np.int64)]
        source, target = (new, old) if wanted.side == "queries" else (old, new)
        return Pairs(source=source.vectors[chosen], target=target.vectors[chosen])

    side: Side = wanted.side
    return Material(
        old=_end(old_space, old_path),
        new=_end(new_space, new_path),
        side=side,
        train=pairs("train"),
        validation=pairs("validation"),
        old_searches=searched(old),
        new_searches=searched(new),
        data={name: sha256_json(old.ids[rows[name]].tolist()) for name in SPLITS},
    )


def _read(path: Path) -> tuple[Vectors, Space | None]:
    vectors, space = files.read(path)
    dimension = int(vectors.vectors.shape[-1])
    return vectors.checked(dimension=dimension, where=str(path)), space


def _end(space: Space | None, path: Path) -> End:
    """Return what made the vectors; where it is not a digest, the SHA-256 of its name stands for it, or of the file."""
    if space is None:
        vectors, _ = files.read(path)
        return End(name=path.stem, digest=sha256_file(path), dimension=int(vectors.vectors.shape[-1]))
    return End(
        name=space.name,
        model_id=space.model_id,
        digest=model_digest(space),
        contract=space.contract,
        dimension=space.dimension,
    )


def _rows(ids: NDArray[np.str_], splits: NDArray[Any] | None, *, where: str) -> dict[str, NDArray[np.int64]]:
    """Return the positions of each split; without train the gallery's, and the other way round."""
    if splits is None:
        splits = np.array([_hashed(name) for name in ids.tolist()])
    rows = {name: np.flatnonzero(splits == name).astype(np.int64) for name in SPLITS}
    unknown = sorted(set(splits.tolist()) - set(SPLITS))
    if unknown:
        raise DataError(f"{where}: split must be one of {', '.join(SPLITS)}, got {unknown[0]!a}")
    for name, other in (("gallery", "train"), ("train", "gallery")):
        rows[name] = rows[name] if len(rows[name]) else rows[other]
    empty = [name for name in SPLITS if not len(rows[name])]
    if empty:
        raise DataError(f"{where}: no id is in the split {empty[0]}; an adapter needs all of {', '.join(SPLITS)}")
    return rows


def _hashed(name: str) -> str:
    place = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    return "query"


def _relevance(
    vectors: Vectors, payload: Mapping[str, NDArray[Any]], relevance: str | None, *, where: str
) -> tuple[Judgments | None, NDArray[Any]]:
    if relevance is None:
        if LABEL not in payload:
            raise DataError(
                f"{where}: have no column label, so that nothing says what answers a query; give --relevance"
            )
        return None, payload[LABEL].astype(np.str_)
    grades = read_grades(Path(relevance))
    queries, items = (np.array(column) for column in zip(*grades, strict=True)) if grades else (np.zeros(0, "U1"),) * 2
    whole = np.array([round(grade) for grade in grades.values()], dtype=np.int64)
    return Judgments(queries=queries, items=items, grades=whole), np.zeros(len(vectors), dtype=np.int64)
