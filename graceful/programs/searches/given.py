"""Files that searches are compared with: vectors of queries by one or more models, judged pairs and clicks. Driver."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful import adapters, addresses
from graceful.errors import DataError, SpecError
from graceful.files import guarded
from graceful.index import Index, Space, Vectors, files
from graceful.index.base import NOTHING
from graceful.index.manifest import Manifest


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """The queries.

    Attributes:
        ids: [Q]
        payload: Column -> [Q]
        spaces: Their vectors by each model, [Q, d].
        mapped: Digest of a model -> what an adapter maps into its space; with it, nothing else is searched with.
    """

    ids: NDArray[np.str_]
    payload: Mapping[str, NDArray[Any]]
    spaces: Sequence[tuple[Space, NDArray[np.float32]]]
    mapped: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def of(self, head: Manifest) -> dict[str, NDArray[np.float32]]:
        """Return the vectors with which a snapshot can be searched, by the name of their space there."""
        if self.mapped:
            digests = {model_digest(space): space.name for space in head.spaces.values()}
            return {digests[digest]: vectors for digest, vectors in self.mapped.items() if digest in digests}
        names = ((head.named(space.fingerprint), vectors) for space, vectors in self.spaces)
        return {name: vectors for name, vectors in names if name is not None}


def model_digest(space: Space) -> str:
    """Return the digest by which adapters know a model: of its bundle, or of what its user calls it."""
    is_digest = len(space.model) == 64 and all(letter in "0123456789abcdef" for letter in space.model)
    return space.model if is_digest else hashlib.sha256(space.model.encode()).hexdigest()


def read_queries(sources: Sequence[str]) -> Given:
    """Return the queries of files, which must have the same ids; of a column that several have, the first counts.

    Args:
        sources: FILE, or SPACE=FILE where the file does not name the model of its vectors.

    Raises:
        SpecError: A file does not say its space, or the ids differ.
    """
    spaces, payload = [], dict[str, NDArray[Any]]()
    ids: NDArray[np.str_] | None = None
    for source in sources:
        vectors, space = _read(source)
        if ids is None:
            ids = vectors.ids
        order = _order(ids, vectors.ids, where=source)
        spaces.append((space, vectors.vectors[order]))
        payload = {**{name: column[order] for name, column in vectors.payload.items()}, **payload}
    if ids is None:
        raise SpecError("--queries: give at least one file of vectors")
    return Given(ids=ids, payload=payload, spaces=spaces)


def _read(source: str) -> tuple[Vectors, Space]:
    name, separator, path = source.partition("=")
    declared = bool(separator) and not addresses.is_remote(source) and not Path(source).exists()
    vectors, written = files.read(path if declared else source)
    if written is None and not declared:
        raise SpecError(f"--queries {source}: does not say which model made its vectors; write SPACE={source}")
    space = written or Space.declared(name, int(vectors.vectors.shape[-1]))
    if declared and space.name != name:
        raise SpecError(f"--queries {source}: says that its vectors are of {space.name}; leave {name}= out")
    return vectors.checked(dimension=space.dimension, where=source), space


def _order(ids: NDArray[np.str_], others: NDArray[np.str_], *, where: str) -> NDArray[np.int64]:
    rows = {name: row for row, name in enumerate(others.tolist())}
    missing = [name for name in ids.tolist() if name not in rows]
    if missing or len(others) != len(ids):
        example = missing[0] if missing else next(name for name in others.tolist() if name not in set(ids.tolist()))
        raise SpecError(
            f"--queries {where}: has other ids than the first file, e.g. {example!a}; give the same queries"
        )
    return np.array([rows[name] for name in ids.tolist()], dtype=np.int64)


def mapped(given: Given, folder: str) -> Given:
    """Return the queries as an adapter maps them, as queries of the space that it maps into.

    Raises:
        SpecError: It maps vectors of a model that no file is of.
    """
    adapter = adapters.load(Path(folder))
    source, target = adapter.described.source, adapter.described.target
    by_model = {model_digest(space): vectors for space, vectors in given.spaces}
    if adapter.described.side != "queries" or source.digest not in by_model:
        known = ", ".join(space.name for space, _ in given.spaces)
        raise SpecError(
            f"--adapter {folder}: maps {adapter.described.side} of {source.name}, the queries are of {known}; give a"
            f" file of queries by {source.name}"
        )
    vectors = adapter(by_model[source.digest], old=by_model.get(target.digest))
    return replace(given, mapped={target.digest: vectors})


def searched(index: Index, head: Manifest, given: Given, *, k: int) -> NDArray[np.str_]:
    """Return [Q, k] ids that a snapshot of an index returns, never a query's own; empty where it has fewer.

    Raises:
        SpecError: The queries are of models that it has no vectors of.
    """
    known = given.of(head)
    if not known:
        has = ", ".join(space.name for space in head.spaces.values())
        names = ", ".join(space.name for space, _ in given.spaces)
        raise SpecError(
            f"{index.place}: has vectors of {has}, the queries are of {names}; give a file of the queries by its"
            " model, or --adapter"
        )
    ids = index.search(known, k=k + 1, manifest=head).ids
    ids = np.pad(ids, ((0, 0), (0, k + 1 - ids.shape[1])), constant_values=NOTHING)
    itself = ids == given.ids[:, None]
    order = np.argsort(itself, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(np.where(itself, NOTHING, ids), order, axis=1)


def read_grades(path: Path) -> dict[tuple[str, str], float]:
    """Return judged pairs or clicks of a .tsv or .csv file: query, item and, where there is one, a grade, else 1.

    Raises:
        DataError: Lines that are neither.
    """
    with guarded(path, "read"), path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    grades: dict[tuple[str, str], float] = {}
    for number, row in enumerate(rows, start=1):
        try:
            query, item, grade = (*row, "1") if len(row) == 2 else row
            if number > 1 or _is_number(grade):
                grades[query, item] = float(grade)
        except ValueError as e:
            raise DataError(
                f"{path}: line {number} must be query, item and a grade, or query and item, got {row}"
            ) from e
    if any(not 0.0 <= grade < float("inf") for grade in grades.values()):
        raise DataError(f"{path}: grades must be 0 or more; correct them")
    return grades


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
