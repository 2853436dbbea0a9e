"""Guess the kind of data in a folder or file: images by class, rows with columns, or tar files of samples. Client.

Only names and the first rows or members are looked at. CSV and JSON lines are read with the standard library; Parquet
needs pyarrow, which loads on first use.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from graceful.cli import shard_guess
from graceful.errors import DataError, SpecError

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
TABLES = {".parquet", ".csv", ".tsv", ".json", ".jsonl", ".ndjson"}
SAMPLE = 1000
"""Rows that are looked at."""
LOOKED_AT = 10_000
"""Files of a folder that are looked at."""
LABELS = ("label", "class", "category", "target", "topic", "species", "kind", "y")
"""Usual names of the column that holds the class, the likeliest first."""
IDS = ("id", "uuid", "guid", "key")
ROWS_OF_CODES = 20
"""Rows that must differ before short texts count as names of rows."""
TEXT_LENGTH = 20
"""Characters that a text to embed has on average, at least."""
MOST_CLASSES = 1000
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
"""First bytes of JPEG, PNG, GIF, BMP and TIFF files."""
LONGEST_NUMBER = 19
"""Digits of a number that rows are counted with."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """What the first rows show of a column.

    Attributes:
        name: Its name.
        numbers: Whether every value that is there is a number.
        gaps: Whether values are missing.
        length: Characters of a value on average.
        distinct: Different values.
        counts: Whether the values are whole numbers that grow by one from row to row.
        rows: Rows that were looked at.
        images: Whether every value is an image: its bytes, as datasets stores one, or the name of its file.
    """

    name: str
    numbers: bool
    gaps: bool
    length: float
    distinct: int
    counts: bool
    rows: int
    images: bool = False


@dataclass(frozen=True, kw_only=True)
class DataDescription:
    """What a path holds.

    Attributes:
        kind: `image_folder`, `table` or `shards`.
        files: For a table or shards, its files as a spec names them.
        columns: For a table, its columns in their order.
        members: For shards, which member holds what: `image` or `text`, and `label`.
        images: Of an image folder, how many were counted; not more than `LOOKED_AT`.
    """

    kind: str
    files: str = ""
    columns: tuple[Column, ...] = ()
    members: dict[str, str] = field(default_factory=dict)
    images: int = 0


def look(path: Path) -> DataDescription:
    """Return what a folder or a file holds.

    Raises:
        DataError: Nothing that graceful reads without code, files of several formats, or rows that cannot be read.
    """
    if path.is_file() and path.suffix.lower() == shard_guess.SHARD:
        return _shards(path, path)
    if not path.exists() and shard_guess.is_pattern(path):
        return _shards(path, shard_guess.first(path))
    if path.is_file():
        if path.suffix.lower() not in TABLES:
            raise DataError(f"{path}: an ending of no known format; give one of {', '.join(sorted(TABLES))}")
        return DataDescription(kind="table", files=str(path), columns=columns_of(path))
    if not path.is_dir():
        raise DataError(f"{path}: no such folder or file; check the path")
    files = [file for file in itertools.islice(path.rglob("*"), LOOKED_AT) if file.is_file()]
    tables = sorted(file for file in files if file.parent == path and file.suffix.lower() in TABLES)
    if tables:
        endings = sorted({file.suffix for file in tables})
        if len(endings) > 1:
            raise DataError(
                f"{path}: files of several formats ({', '.join(endings)}); name one file or move the others"
            )
        return DataDescription(kind="table", files=str(path / f"*{endings[0]}"), columns=columns_of(tables[0]))
    shards = sorted(file for file in files if file.parent == path and file.suffix.lower() == shard_guess.SHARD)
    if shards:
        return DataDescription(
            kind="shards", files=str(path / f"*{shard_guess.SHARD}"), members=shard_guess.members(shards[0])
        )
    images = sum(file.suffix.lower() in IMAGES and file.parent != path for file in files)
    if images:
        return DataDescription(kind="image_folder", images=images)
    raise DataError(
        f"{path}: neither class folders of images nor rows ({', '.join(sorted(TABLES))}) nor shards (.tar); for other"
        " data write a Python task, see docs/extending/task.md"
    )


def _shards(files: Path, first: Path) -> DataDescription:
    return DataDescription(kind="shards", files=str(files), members=shard_guess.members(first))


def columns_of(path: Path) -> tuple[Column, ...]:
    """Return the columns of a file by its first rows.

    Raises:
        DataError: It cannot be read, or holds no rows.
    """
    try:
        rows = list(itertools.islice(_rows(path), SAMPLE))
    except (OSError, ValueError, csv.Error) as e:
        raise DataError(f"{path}: cannot be read ({' '.join(str(e).split())[:200]}); check the file") from e
    if not rows:
        raise DataError(f"{path}: holds no rows; name a file with data")
    names = list(rows[0])
    if len(names) == 1 and path.suffix.lower() in (".csv", ".tsv"):
        separator = next((sign for sign in (";", "\t", "|", ",") if sign in str(names[0])), None)
        if separator is not None:
            raise DataError(f"{path}: columns are separated by {separator!r}; write commas, or tabs in a .tsv file")
    return tuple(_column(str(name), [row.get(name) for row in rows]) for name in names)


def label_of(columns: tuple[Column, ...]) -> str | None:
    """Return the column that most likely holds the class; None: there is no likely one."""
    likely = [column for column in columns if 2 <= column.distinct <= min(MOST_CLASSES, max(2, column.rows // 2))]
    for name in LABELS:
        for column in likely:
            if column.name.casefold() == name:
                return column.name
    few = [column for column in likely if column.length < TEXT_LENGTH and (not column.numbers or column.distinct <= 20)]
    return min(few, key=lambda column: column.distinct).name if few else None


def ids_of(columns: tuple[Column, ...]) -> tuple[str, ...]:
    """Return the columns that look like names of rows: by their own name, or because they count upwards.

    They mean nothing to a network, even where their values repeat.
    """
    return tuple(column.name for column in columns if column.name.casefold() in IDS or column.counts)


def id_of(columns: tuple[Column, ...], *, excluded: set[str]) -> str | None:
    """Return the column that names each row, by its own name or because its short texts all differ; None: none does."""
    looks = ids_of(columns)
    unique = [column for column in columns if column.distinct == column.rows and not column.gaps and not column.images]
    named = [column.name for column in unique if column.name in looks]
    codes = [
        column.name
        for column in unique
        if column.name not in excluded
        and not column.numbers
        and column.length < TEXT_LENGTH
        and column.rows >= ROWS_OF_CODES
    ]
    return next(iter([*named, *codes]), None)


def text_of(columns: tuple[Column, ...], *, excluded: set[str]) -> str | None:
    """Return the column with the longest texts; None: there are only short ones."""
    texts = [
        column
        for column in columns
        if column.name not in excluded and not column.numbers and column.length >= TEXT_LENGTH and column.distinct > 1
    ]
    return max(texts, key=lambda column: column.length).name if texts else None


def numbers_of(columns: tuple[Column, ...], *, excluded: set[str]) -> tuple[str, ...]:
    """Return the columns of numbers that vary."""
    return tuple(
        column.name for column in columns if column.name not in excluded and column.numbers and column.distinct > 1
    )


def categories_of(columns: tuple[Column, ...], *, excluded: set[str]) -> tuple[str, ...]:
    """Return the columns of short texts of which there are few different ones."""
    return tuple(
        column.name
        for column in columns
        if column.name not in excluded
        and not column.numbers
        and column.length < TEXT_LENGTH
        and 2 <= column.distinct <= min(MOST_CLASSES, max(2, column.rows // 2))
    )


def _column(name: str, values: list[Any]) -> Column:
    texts = ["" if value is None else str(_stated(value)) for value in values]
    return Column(
        name=name,
        numbers=any(texts) and all(_is_number(value) for value, text in zip(values, texts, strict=True) if text),
        gaps=not all(texts),
        length=sum(map(len, texts)) / len(texts),
        distinct=len(set(texts)),
        counts=len(texts) > 1
        and all(map(_is_whole, texts))
        and all(int(after) == int(text) + 1 for text, after in pairwise(texts)),
        rows=len(values),
        images=any(map(_is_image, values)) and all(value is None or _is_image(value) for value in values),
    )


def image_of(columns: tuple[Column, ...], *, excluded: set[str]) -> str | None:
    """Return the first column of images; None: there is none."""
    return next((column.name for column in columns if column.images and column.name not in excluded), None)


def _is_image(value: Any) -> bool:
    """Return whether a value is an image as datasets stores one, bytes that begin as images do, or a name of a file."""
    if isinstance(value, dict):
        return {"bytes", "path"} <= set(value)
    if isinstance(value, bytes):
        return value.startswith(_BEGINNINGS) or (value[:4] == b"RIFF" and value[8:12] == b"WEBP")
    return isinstance(value, str) and Path(value).suffix.lower() in IMAGES


def _stated(value: Any) -> Any:
    """Return a value, or in place of bytes their digest."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        value = value["bytes"]
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else value


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < LONGEST_NUMBER


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return False
        return True
    return isinstance(value, int | float)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _parquet(path)
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        if kind in (".csv", ".tsv"):
            yield from csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",")
            return
        for line in file:
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("a line is not a JSON object; write one object in each line")
                yield row


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as e:
        raise SpecError(f"{path}: Parquet needs pyarrow; pip install 'graceful-ai[table]'") from e
    batch = next(parquet.ParquetFile(path).iter_batches(batch_size=SAMPLE), None)
    yield from [] if batch is None else batch.to_pylist()
