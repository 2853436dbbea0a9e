"""Files of vectors: .npz and .parquet, written by `graceful index embed` or by anybody else. Driver.

An .npz has the arrays `ids` [N] and `vectors` [N, d]; a .parquet the columns `id` and `vector` (a list of numbers).
All other arrays and columns are payload. Files are read from this machine or from a bucket. A file that graceful wrote
names the space of its vectors; for other files, the caller names it.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful import addresses
from graceful.errors import DataError, SpecError, one_line
from graceful.files import guarded, replacing
from graceful.index.space import Space
from graceful.index.vectors import Vectors
from graceful.storage import cached_file, object_cache
from graceful.storage.arrays import read_header
from graceful.storage.conditional import look_up

LARGEST = 64 * 2**30
"""The most bytes that the arrays of one file may take."""
_SPACE = "graceful.space"


def read(where: str | Path) -> tuple[Vectors, Space | None]:
    """Return the vectors of a file, and their space if the file names it.

    Args:
        where: The path of the file, or s3://bucket/key.

    Raises:
        SpecError: The name ends in neither .npz nor .parquet.
        DataError: The file does not exist, is not of that format, or has no ids or vectors.
        StorageError: The file cannot be read.
    """
    suffix = Path(where).suffix
    if suffix not in (".npz", ".parquet"):
        raise SpecError(f"{where}: must be a file of vectors, .npz or .parquet")
    path = _local(where)
    columns, written = _parquet(path, where) if suffix == ".parquet" else _npz(path, where)
    ids, vectors = ("id", "vector") if suffix == ".parquet" else ("ids", "vectors")
    missing = [name for name in (ids, vectors) if name not in columns]
    if missing:
        raise DataError(f"{where}: has no {missing[0]}; it has {', '.join(sorted(columns)) or 'nothing'}")
    found = Vectors(ids=_texts(columns.pop(ids)), vectors=columns.pop(vectors), payload=columns)
    if not written:
        return found, None
    try:
        return found, Space.read(json.loads(written), where=str(where))
    except (ValueError, AttributeError) as e:
        problem = f"{_SPACE} is not a description of a space ({one_line(e):.100})"
        raise DataError(f"{where}: {problem}; write it again") from e


def write(path: Path, vectors: Vectors, space: Space) -> None:
    """Write vectors as an .npz or .parquet file that names their space.

    Raises:
        SpecError: The name ends in neither .npz nor .parquet.
        StorageError: The disk is full, or the file cannot be written.
    """
    document = json.dumps(space.document())
    if path.suffix not in (".npz", ".parquet"):
        raise SpecError(f"{path}: must end in .npz or .parquet")
    with guarded(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            if path.suffix == ".npz":
                arrays: dict[str, Any] = {"ids": vectors.ids, "vectors": vectors.vectors, **vectors.payload}
                np.savez(file, allow_pickle=False, **arrays, **{_SPACE: np.array([document])})
                return
            pa, parquet = _pyarrow(path)
            rows = pa.FixedSizeListArray.from_arrays(vectors.vectors.reshape(-1), vectors.dimension)
            payload = {name: pa.array(column.tolist()) for name, column in vectors.payload.items()}
            table = pa.table({"id": pa.array(vectors.ids.tolist()), "vector": rows, **payload})
            parquet.write_table(table.replace_schema_metadata({_SPACE: document}), file)


def _local(where: str | Path) -> Path:
    """Return the path of a file, or of a local copy of an object in a bucket.

    Raises:
        DataError: The file or object does not exist.
    """
    if isinstance(where, str) and addresses.is_remote(where):
        stored = look_up(where)
        if stored is None:
            raise DataError(f"{where}: no such object; check the address")
        return cached_file(stored, object_cache())
    if not Path(where).exists():
        raise DataError(f"{where}: no such file of vectors; check the path")
    return Path(where)


def _texts(ids: NDArray[Any]) -> NDArray[Any]:
    """Convert ids that are whole numbers to texts."""
    return ids.astype(np.str_) if ids.dtype.kind in "iu" else ids


def _npz(path: Path, where: str | Path) -> tuple[dict[str, NDArray[Any]], str]:
    try:
        with guarded(path, "read"), zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
            if sum(entry.file_size for entry in entries) > LARGEST:
                raise ValueError(f"unpacked more than {LARGEST} bytes, the most that is read")
            for entry in entries:
                with archive.open(entry) as stream:
                    shape, dtype = read_header(stream, name=entry.filename)
                    if dtype.hasobject or int(np.prod(shape, dtype=np.float64)) * dtype.itemsize > entry.file_size:
                        raise ValueError(f"{entry.filename} is {dtype} of shape {list(shape)} and holds something else")
        with guarded(path, "read"), np.load(path, allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in arrays.files}
    except (ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as e:
        raise DataError(f"{where}: no archive of arrays ({one_line(e):.200}); write it with numpy.savez") from e
    written = columns.pop(_SPACE, None)
    return columns, "" if written is None else str(written.reshape(-1)[0] if written.size else "")


def _parquet(path: Path, where: str | Path) -> tuple[dict[str, NDArray[Any]], str]:
    pa, parquet = _pyarrow(where)
    try:
        with guarded(path, "read"):
            os.stat(path)
            table = parquet.read_table(path)
        metadata = table.schema.metadata or {}
        columns: dict[str, NDArray[Any]] = {}
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            if column.null_count:
                raise ValueError(f"column {name} has {column.null_count} empty values")
            if name == "vector":
                columns[name] = _matrix(column, rows=len(table))
            else:
                values = column.to_numpy(zero_copy_only=False)
                columns[name] = values.astype(np.str_) if values.dtype.hasobject and _all_text(values) else values
    except (pa.ArrowException, ValueError, TypeError) as e:
        raise DataError(f"{where}: no Parquet file of vectors ({one_line(e):.200})") from e
    return columns, metadata.get(_SPACE.encode(), b"").decode(errors="replace")


def _matrix(column: Any, *, rows: int) -> NDArray[Any]:
    """Return a column of lists as a matrix."""
    lengths = column.value_lengths().unique().to_pylist() if rows else [0]
    if len(lengths) != 1:
        raise ValueError(f"vectors differ in length: {min(lengths)} to {max(lengths)} numbers")
    values: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(rows, lengths[0])


def _all_text(values: NDArray[Any]) -> bool:
    return all(isinstance(value, str) for value in values.tolist())


def _pyarrow(where: str | Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as e:
        raise SpecError(f"{where}: Parquet files need pyarrow; install graceful-ai[table], or give an .npz file") from e
    return pyarrow, parquet
