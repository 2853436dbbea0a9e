"""Write a cache of predecessor outputs: appended, resumable, sealed with digests. The driver runs it.

Rows are appended in order (view by view), flushed, and only then counted in `progress.json`, so that an interrupted
build keeps what it counted; where home has a copy in a bucket, each quarter of the work is copied there, for a build
that goes on elsewhere. Plain appends rather than a writable memory map, because a full disk is then an error message
and not a bus error. `<key>.partial` becomes `<key>` by one rename; a lock file keeps other builders waiting.
"""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from graceful import locks, storage
from graceful.chain import Predecessor
from graceful.errors import DataError, StorageError
from graceful.files import replacing
from graceful.models.base import Outputs
from graceful.targets import files, layouts
from graceful.targets.blocks import Block, Compute, blocks_of, check_shape, run
from graceful.tasks.base import Samples
from graceful.tasks.names import encoded_blocks

_PROGRESS = "progress.json"
_FLUSH_EVERY = 32
_COPIES = 4
"""An unfinished build is copied to the bucket so many times, less one."""
_FP16_MAX = 65504.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a build runs: see `graceful.targets.build`."""

    predecessor: Predecessor
    samples: Samples
    views: NDArray[np.uint64] | None
    batch_size: int
    progress: Callable[[int, int], None] | None
    top: int | None = None
    compute: Compute | None = None
    """None: in this process, one block after the other."""

    @property
    def shape(self) -> tuple[int, int]:
        """Return the number of views V and of samples N."""
        return (1 if self.views is None else len(self.views)), len(self.samples)


@dataclass(frozen=True, kw_only=True)
class _Column:
    """One .npy file that grows row by row; its header announces the final shape."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def header(self) -> bytes:
        return _header(self.dtype, self.shape)

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape[2:], dtype=np.int64))

    @property
    def size(self) -> int:
        return len(self.header) + self.row_bytes * self.shape[0] * self.shape[1]


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return how an .npy file begins."""
    text = io.BytesIO()
    np.lib.format.write_array_header_1_0(text, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return text.getvalue()


class _EmbeddingOverflowError(Exception):
    """An embedding does not fit fp16; the build starts again with fp32. Never leaves this module."""


def write(root: Path, *, work: Work, identity: dict[str, Any], mirror: storage.Mirror) -> Path:
    """Build the cache `root/<digest of identity>` unless it is there.

    Returns:
        Its folder.

    Raises:
        DataError: Outputs of another shape than the predecessor declares, or it cannot be run any more.
        StorageError: The disk is full or refuses, or locks nothing.
    """
    key = storage.sha256_json(identity)
    folder, partial = root / key, root / f"{key}.partial"
    if mirror.unseal(folder):
        return folder
    if work.predecessor.unrunnable_reason:
        raise DataError(
            f"{work.predecessor.name}: {work.predecessor.unrunnable_reason}, and {root} has no outputs of it on these"
            f" samples and views (cache {key[:12]}...); leave it out of compatibility.against, or"
            f" {work.predecessor.remedy}",
            {"cache": key},
        )
    with _storage(root), locks.exclusive(root / f"{key}.lock", seconds=None):
        if not folder.exists():
            if not partial.exists():
                mirror.restore(partial)
            embeddings = _fill(partial, work, mirror)
            _seal(partial, work, identity=identity, columns=_columns(work, embeddings))
            partial.rename(folder)
    mirror.seal(folder)
    mirror.delete_folder(partial)
    return folder


# --- filling ----------------------------------------------------------------------------------------------------------


def _columns(work: Work, embeddings: str) -> tuple[_Column, ...]:
    views, rows = work.shape
    classes, size = len(work.predecessor.classes), work.predecessor.embedding_size
    top = layouts.logits_kept(work.top, classes)
    logits = (
        [_Column(name="logits.npy", dtype=np.dtype("<f2"), shape=(views, rows, classes))]
        if top is None
        else [
            _Column(name=layouts.LABELS, dtype=layouts.label_type(classes), shape=(views, rows, top)),
            _Column(name=layouts.VALUES, dtype=np.dtype("<f2"), shape=(views, rows, top)),
            _Column(name=layouts.REST, dtype=np.dtype("<f2"), shape=(views, rows)),
        ]
    )
    return (
        *logits,
        _Column(name="offsets.npy", dtype=np.dtype("<f4"), shape=(views, rows)),
        _Column(name="embeddings.npy", dtype=np.dtype(embeddings), shape=(views, rows, size)),
        _Column(name="present.npy", dtype=np.dtype("?"), shape=(views, rows)),
    )


def _fill(partial: Path, work: Work, mirror: storage.Mirror) -> str:
    """Append all missing rows; returns the type of the embeddings."""
    partial.mkdir(parents=True, exist_ok=True)
    rows_done, embeddings = _resumed(partial)
    try:
        _append(partial, work, mirror, rows_done=rows_done, embeddings=embeddings)
    except _EmbeddingOverflowError:
        embeddings = "<f4"
        _append(partial, work, mirror, rows_done=0, embeddings=embeddings)
    return embeddings


def _resumed(partial: Path) -> tuple[int, str]:
    """Return the rows that an interrupted build counted, and its type of embeddings."""
    path = partial / _PROGRESS
    if not path.is_file():
        return 0, "<f2"
    document = json.loads(storage.read_bytes(path))
    return int(document["rows"]), str(document["embeddings"])


def _append(partial: Path, work: Work, mirror: storage.Mirror, *, rows_done: int, embeddings: str) -> None:
    columns = _columns(work, embeddings)
    _check_space(partial, columns)
    views, rows = work.shape
    with ExitStack() as stack:
        rows_done = _complete_rows(partial, columns, rows_done)
        files = [(column, stack.enter_context(_opened(partial, column, rows_done))) for column in columns]
        copies = _COPIES * rows_done // (views * rows)
        for number, (block, outputs) in enumerate(_computed(work, rows_done), start=1):
            encoded = _encode(outputs, embeddings, top=work.top)
            for column, file in files:
                file.write(np.ascontiguousarray(encoded[column.name], dtype=column.dtype).data)
            rows_done = block.view * rows + block.stop
            if number % _FLUSH_EVERY == 0 or rows_done == views * rows:
                _record_progress(partial, [file for _, file in files], rows=rows_done, embeddings=embeddings)
                if copies < _COPIES * rows_done // (views * rows) < _COPIES:
                    mirror.save(partial, exclude=(_PROGRESS,))
                    mirror.save(partial, only=(_PROGRESS,))
                    copies = _COPIES * rows_done // (views * rows)
            if work.progress is not None:
                work.progress(rows_done, views * rows)


def _complete_rows(partial: Path, columns: Sequence[_Column], rows_counted: int) -> int:
    """Return the rows that are certainly whole: those counted, if every file has them under the right header."""
    for column in columns:
        path, header = partial / column.name, column.header
        if not path.is_file() or path.stat().st_size < len(header) + rows_counted * column.row_bytes:
            return 0
        with path.open("rb") as file:
            if file.read(len(header)) != header:
                return 0
    return rows_counted


@contextmanager
def _opened(partial: Path, column: _Column, rows_done: int) -> Iterator[BinaryIO]:
    """Open the file, truncated after the rows that are done."""
    with (partial / column.name).open("r+b" if rows_done else "wb") as file:
        if not rows_done:
            file.write(column.header)
        file.truncate(len(column.header) + rows_done * column.row_bytes)
        file.seek(0, os.SEEK_END)
        yield file


def _computed(work: Work, rows_done: int) -> Iterator[tuple[Block, Outputs]]:
    remaining = blocks_of(len(work.samples), views=work.views, size=work.batch_size, rows_done=rows_done)
    blocks, input_blocks = itertools.tee(remaining)
    compute = work.compute or (lambda block_list: (run(work.predecessor, work.samples, block) for block in block_list))
    for block, outputs in zip(blocks, compute(input_blocks), strict=True):
        check_shape(work.predecessor, outputs, rows=block.stop - block.start)
        yield block, outputs


def _encode(outputs: Outputs, embeddings: str, *, top: int | None) -> dict[str, NDArray[Any]]:
    """Convert fp32 outputs to blocks of the files. Logits are stored at most 65504 below the row maximum."""
    logits, embedding = outputs.logits.cpu().numpy(), outputs.embedding.cpu().numpy()
    present = np.isfinite(logits).all(1) & np.isfinite(embedding).all(1)
    logits = np.where(present[:, None], logits, np.float32(0))
    embedding = np.where(present[:, None], embedding, np.float32(0))
    if embeddings == "<f2" and np.abs(embedding).max(initial=0.0) > _FP16_MAX:
        raise _EmbeddingOverflowError
    offsets = logits.max(axis=1)
    shifted = np.maximum(logits - offsets[:, None], np.float32(-_FP16_MAX))
    top = layouts.logits_kept(top, logits.shape[1])
    return {
        **({"logits.npy": shifted.astype(np.float16)} if top is None else layouts.encode_top(shifted, top=top)),
        "offsets.npy": offsets,
        "embeddings.npy": embedding,
        "present.npy": present,
    }


def _record_progress(partial: Path, outputs: Sequence[BinaryIO], *, rows: int, embeddings: str) -> None:
    for file in outputs:
        file.flush()
        os.fsync(file.fileno())
    storage.write_json(partial / _PROGRESS, {"rows": rows, "embeddings": embeddings})


def _seal(partial: Path, work: Work, *, identity: dict[str, Any], columns: Sequence[_Column]) -> None:
    """Add ids, views and the description, flush, and drop the count."""
    dtype, encoded = encoded_blocks(work.samples.ids)
    extra: dict[str, tuple[np.dtype[Any], tuple[int, ...], Iterator[NDArray[Any]]]] = {
        "ids.npy": (dtype, (len(work.samples.ids),), encoded)
    }
    if work.views is not None:
        views = np.asarray(work.views, dtype=np.uint64)
        extra["views.npy"] = (views.dtype, views.shape, iter([views]))
    for name, (kind, shape, blocks) in extra.items():
        with replacing(partial / name) as file:
            file.write(_header(kind, shape))
            for block in blocks:
                file.write(np.ascontiguousarray(block).tobytes())
    names = [*(column.name for column in columns), *extra]
    meta = {
        "key": storage.sha256_json(identity),
        "identity": identity,
        "name": work.predecessor.name,
        "classes": list(work.predecessor.classes),
        "files": {name: files.fingerprint(partial / name, whole=True) for name in names},
    }
    storage.write_json(partial / files.META, meta)
    (partial / _PROGRESS).unlink(missing_ok=True)


# --- the disk ---------------------------------------------------------------------------------------------------------


def _check_space(partial: Path, columns: Sequence[_Column]) -> None:
    existing = sum(path.stat().st_size for path in partial.iterdir())
    needed = sum(column.size for column in columns) - existing
    free_bytes = shutil.disk_usage(partial).free
    if needed > free_bytes:
        raise StorageError(
            f"{partial}: needs {needed:,} more bytes for predecessor outputs, {free_bytes:,} are free; free some, set"
            " home to another disk, lower compatibility.targets.views, or write mode: live",
            {"path": str(partial), "needed": needed, "free": free_bytes},
        )


@contextmanager
def _storage(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "the disk is full; free some space, the build goes on where it stopped"
        else:
            remedy = f"{e.strerror or e}; check the path, its permissions, and that its file system supports locks"
        raise StorageError(f"{root}: predecessor outputs cannot be written, {remedy}", {"path": str(root)}) from e
