"""Files of a table as one Hugging Face dataset, memory-mapped, with the place of each row. Driver and workers.

Every file is converted to Arrow once, below graceful's folder, and opened by memory-mapping afterwards; a file that
is added later costs its own conversion alone. The library loads when a table is opened.
"""

from __future__ import annotations

import bisect
import glob
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful import homes, storage
from graceful.errors import DataError, SpecError
from graceful.tasks.table.mapping import Mappings, Numbers, arrow_table

FORMATS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
"""Ending of a file -> the name of its reader in datasets."""
_PATTERN = "*?["
ENDINGS = ", ".join(FORMATS)
BATCH = 16_384
"""Rows that are read together."""
STORED = 65_536
"""Rows that are stored together: of fewer, 10^8 rows have so many parts that opening them takes 1 GB of memory."""

FILES_AT_ONCE = 256
"""Rows with bytes of files that are read together."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of several files in the order of their names.

    Attributes:
        rows: The `datasets.Dataset`.
        files: What each part was read from, for messages.
        starts: Position of the first row of each part.
        identity: Name, size and time of change of everything that was read.
    """

    rows: Any
    files: tuple[str, ...]
    starts: tuple[int, ...]
    identity: tuple[tuple[str, int, int], ...]

    @cached_property
    def step(self) -> int:
        """Return how many rows to read together: few where a column holds the bytes of files, which are large."""
        kinds = [str(field.type) for field in self.rows.features.arrow_schema]
        return FILES_AT_ONCE if any("binary" in kind for kind in kinds) else BATCH

    def block(self, names: Sequence[str], start: int, stop: int) -> Any:
        """Return some columns of neighbouring rows as a `pyarrow.Table`; nothing is copied."""
        if self._arrow is None:
            return self.rows.with_format("arrow", columns=list(names))[start:stop]
        self._mappings.read(stop - start)
        return self._arrow.select(list(names)).slice(start, stop - start)

    def taken(self, name: str, positions: NDArray[np.int64]) -> Any:
        """Return one column of some rows, in the order of the positions, as a `pyarrow.Array`."""
        if self._arrow is None:
            column = self.rows.with_format("arrow", columns=[name])[positions.tolist()][name]
            return column.combine_chunks() if hasattr(column, "combine_chunks") else column
        self._mappings.read(len(positions))
        return gathered(*self._chunks_of(name), positions)

    def numbers(self, name: str, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return one column of numbers of some rows, in the order of the positions; NaN for null."""
        if name not in self._numbers:
            plain = None if self._arrow is None else Numbers.of(*self._chunks_of(name), self._mappings)
            self._numbers[name] = plain
        plain = self._numbers[name]
        if plain is not None:
            self._mappings.read(len(positions))
            return plain.taken(positions).astype(np.float64)
        taken = self.taken(name, positions).cast("float64", safe=False)
        return np.asarray(taken.to_numpy(zero_copy_only=False), dtype=np.float64)

    def _chunks_of(self, name: str) -> tuple[list[Any], NDArray[np.int64]]:
        if name not in self._chunks:
            chunks = self._arrow.column(name).chunks
            starts = np.cumsum([0, *(len(chunk) for chunk in chunks[:-1])])
            self._chunks[name] = chunks, starts
        return self._chunks[name]

    @property
    def _arrow(self) -> Any:
        """Return the rows in the memory map; None where a selection of rows lies over them."""
        return self._mapped[0]

    @property
    def _mappings(self) -> Mappings:
        return self._mapped[1]

    @cached_property
    def _mapped(self) -> tuple[Any, Mappings]:
        selected = getattr(self.rows, "_indices", None) is not None
        return (None, Mappings([])) if selected else arrow_table(self.rows)

    @cached_property
    def _numbers(self) -> dict[str, Numbers | None]:
        return {}

    @cached_property
    def _chunks(self) -> dict[str, tuple[list[Any], NDArray[np.int64]]]:
        return {}

    def place(self, row: int) -> str:
        """Return file and number (from 0) of a row, for a message."""
        part = bisect.bisect_right(self.starts, row) - 1
        return f"{self.files[part]}, row {row - self.starts[part]}"

    def file_of(self, row: int) -> str:
        """Return what a row was read from."""
        return self.files[bisect.bisect_right(self.starts, row) - 1]


def gathered(chunks: Sequence[Any], starts: NDArray[np.int64], positions: NDArray[np.int64]) -> Any:
    """Return some rows of a column that is stored in chunks; only those rows are copied.

    Args:
        chunks: `pyarrow.Array`s, at least one.
        starts: Position of the first row of each.
        positions: [B].
    """
    import pyarrow as pa

    owners = np.searchsorted(starts, positions, side="right") - 1
    order = None if (np.diff(owners) >= 0).all() else np.argsort(owners, kind="stable")
    owners = owners if order is None else owners[order]
    within = (positions if order is None else positions[order]) - starts[owners]
    bounds = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(owners)] if len(owners) else [0]
    parts = []
    for begin, end in pairwise(bounds):
        chunk, rows = chunks[owners[begin]], within[begin:end]
        neighbours = rows[-1] - rows[0] == end - begin - 1 and (np.diff(rows) == 1).all()
        parts.append(chunk.slice(rows[0], end - begin) if neighbours else chunk.take(pa.array(rows)))
    array = pa.concat_arrays(parts) if parts else chunks[0].slice(0, 0)
    return array if order is None else array.take(pa.array(np.argsort(order)))


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file, or folder of `save_to_disk`.

    Attributes:
        where: What it was read from, for messages.
        rows: The dataset.
        identity: As of a `Table`.
    """

    where: str
    rows: Any
    identity: tuple[tuple[str, int, int], ...]


def read_files(files: Sequence[str], *, texts: Sequence[str], image: str | None = None) -> list[Part]:
    """Open the files that a task names, each as a dataset.

    Args:
        files: Paths, patterns, folders of `save_to_disk`, or s3:// addresses.
        texts: Columns of CSV files to read as text whatever they look like, so that a class named 01 or NA stays what
            it is.
        image: Column of images, which datasets is not to decode.

    Raises:
        SpecError: The package datasets is not installed.
        DataError: No such file, an ending of no known format, or a damaged file.
        StorageError: A bucket cannot be reached.
    """
    datasets = _library()
    paths = [path for name in files for path in _paths(name)]
    parts = []
    for path, where in paths:
        rows = _read(datasets, path, where, texts)
        if isinstance(rows.features.get(image), datasets.Image):
            rows = rows.cast_column(image, datasets.Image(decode=False))
        parts.append(Part(where=where, identity=_identity(path), rows=rows))
    return parts


def joined(parts: Sequence[Part]) -> Table:
    """Return one table of several files, which must have the same columns.

    Raises:
        DataError: Their columns differ in name or type.
    """
    datasets = _library()
    first, names = parts[0].where, set(parts[0].rows.column_names)
    starts, total = [], 0
    for part in parts:
        differing = sorted(names ^ set(part.rows.column_names))
        if differing:
            raise DataError(
                f"task.files: {part.where} and {first} differ in column {differing[0]!r}; give all the same"
            )
        starts.append(total)
        total += len(part.rows)
    try:
        rows = datasets.concatenate_datasets([part.rows for part in parts])
    except (ValueError, TypeError) as e:
        raise DataError(f"task.files: columns of the files have different types ({_line(e)}); give all the same") from e
    return Table(
        rows=rows,
        files=tuple(part.where for part in parts),
        starts=tuple(starts),
        identity=tuple(entry for part in parts for entry in part.identity),
    )


def _identity(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of change of a file, or of the files of a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    facts = [(file, file.stat()) for file in files if file.is_file()]
    return tuple((str(file.resolve()), fact.st_size, fact.st_mtime_ns) for file, fact in facts)


def _library() -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as e:
        raise SpecError(
            f"task.kind table: the package datasets cannot be imported ({_line(e)}); pip install 'graceful-ai[table]'"
        ) from e
    datasets.disable_progress_bars()
    return datasets


def _paths(name: str) -> list[tuple[Path, str]]:
    """Return local files, sorted, with what to call them in messages."""
    if storage.is_remote(name):
        return _remote(name)
    names = sorted(glob.glob(name, recursive=True)) if any(sign in name for sign in _PATTERN) else [name]
    existing = [Path(path) for path in names if Path(path).exists()]
    if not existing:
        raise DataError(f"task.files: {name} names no file; check the path")
    return [(path, str(path)) for path in existing]


def _remote(name: str) -> list[tuple[Path, str]]:
    """Bring objects here, each once."""
    folder = name.split("*", 1)[0].split("?", 1)[0].split("[", 1)[0].rpartition("/")[0]
    _, pattern = storage.split_uri(name)
    objects = [item for item in storage.list_objects(folder) if item.key == pattern or fnmatch(item.key, pattern)]
    if not objects:
        raise DataError(f"task.files: {name} names no object; check the address")
    return [(storage.cached_file(item, storage.object_cache()), item.uri) for item in objects]


def _read(datasets: Any, path: Path, where: str, texts: Sequence[str]) -> Any:
    """Return one file, or one folder of `save_to_disk`, as a dataset."""
    if path.is_dir():
        return _saved(datasets, path, where)
    kind = FORMATS.get(PurePosixPath(where).suffix.lower())
    if kind is None:
        raise DataError(f"task.files: {where} has an ending of no known format; write one of {ENDINGS}")
    if path.stat().st_size == 0:
        raise DataError(f"task.files: {where} is empty; leave it out or write it again")
    options: dict[str, Any] = {}
    if kind == "csv":
        separator = "\t" if where.lower().endswith(".tsv") else ","
        options = {
            "converters": dict.fromkeys(texts, str),
            "keep_default_na": False,
            "na_values": [""],
            "sep": separator,
        }
    cache = str(homes.folder() / "cache" / "datasets")
    try:
        rows = datasets.load_dataset(
            kind, data_files=[str(path)], split="train", cache_dir=cache, writer_batch_size=STORED, **options
        )
    except OSError as e:
        raise DataError(f"task.files: {where} cannot be read ({_line(e)}); check the file and the space on disk") from e
    except (ValueError, TypeError, datasets.exceptions.DatasetGenerationError) as e:
        raise DataError(f"task.files: {where} is damaged ({_line(e.__cause__ or e)}); write it again") from e
    if "__index_level_0__" in rows.column_names:
        raise DataError(f"task.files: {where} is damaged (rows with more values than columns); write it again")
    return rows


def _saved(datasets: Any, path: Path, where: str) -> Any:
    try:
        rows = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as e:
        raise DataError(f"task.files: {where} is not a folder of save_to_disk ({_line(e)}); name its files") from e
    if not isinstance(rows, datasets.Dataset):
        split = next(iter(rows), "train")
        raise DataError(f"task.files: {where} holds several splits; write files: {{{split}: {where}/{split}, ...}}")
    return rows


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
