"""Images of a table: bytes in its rows, or paths of files, decoded as those of an image folder. Driver and workers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful import storage
from graceful.errors import DataError
from graceful.tasks.image_listing import Image, in_threads, local_tag, printable
from graceful.tasks.photos import Frame, Photo, read_photo
from graceful.tasks.table.source import Table

_PARTS = {"bytes", "path"}
"""Fields of a column of datasets' Image."""
_TRIED = Frame(size=8, decode="reduced")
"""How images are decoded only to see whether they can be."""


def require_images(table: Table, name: str) -> None:
    """Refuse a column that holds neither images, as datasets stores them, nor bytes, nor paths.

    Raises:
        DataError: With the type that it has.
    """
    kind = _type(table, name)
    if not _is_struct(kind) and not _is_bytes(kind) and not _is_text(kind):
        raise DataError(
            f"task.columns.image: column {name!r} of {table.files[0]} holds {kind}; must be images, bytes or paths"
        )


def values_of(column: Any) -> Any:
    """Return what an image column holds as one Arrow array of bytes: of each row its bytes, or else its path."""
    from pyarrow import compute

    if not _is_struct(column.type):
        return column.cast("large_binary")
    data, path = (compute.struct_field(column, part) for part in ("bytes", "path"))
    return compute.coalesce(data.cast("large_binary"), path.cast("large_binary"))


def readable(table: Table, name: str, start: int, stop: int) -> NDArray[np.bool_]:
    """Return for each of some neighbouring rows whether its image can be decoded; a row without one counts as such."""

    def is_readable(image: Image | None) -> bool:
        try:
            return image is None or bool(read_photo(image, _TRIED).pixels.size)
        except DataError:
            return False

    images = images_at(table, name, np.arange(start, stop))
    return np.fromiter(in_threads(is_readable, images), dtype=np.bool_, count=stop - start)


def read_photos(table: Table, name: str, positions: NDArray[np.int64], frame: Frame) -> list[Photo]:
    """Decode the images of some rows.

    Raises:
        DataError: One has none, or cannot be decoded; names file and row.
    """
    images = images_at(table, name, positions)
    for row, image in zip(positions.tolist(), images, strict=True):
        if image is None:
            raise DataError(f"{table.place(row)}: no image in {name}; correct the row")
    return in_threads(partial(read_photo, frame=frame), (image for image in images if image is not None))


def tags(table: Table, name: str, positions: NDArray[np.int64]) -> list[str]:
    """Return what changes when the files of a column of paths do; nothing where the rows hold the images themselves."""
    if _is_bytes(_type(table, name)):
        return []
    images = images_at(table, name, positions)
    return in_threads(lambda image: "" if image is None else image.tag(), images)


def images_at(table: Table, name: str, positions: NDArray[np.int64]) -> list[Image | None]:
    """Return the images of some rows; None where a row has none."""
    values = table.taken(name, positions).to_pylist()
    return [_image(table, row, value) for row, value in zip(positions.tolist(), values, strict=True)]


def _image(table: Table, row: int, value: Any) -> Image | None:
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if isinstance(data, str):
        data, path = None, data
    place = table.place(row)
    if data is not None:
        return _made(place, lambda: data, lambda: "")
    if not path:
        return None
    address = _beside(table.file_of(row), path)
    if storage.is_remote(address):
        return _made(f"{place}, {address}", partial(storage.read_object, address), lambda: address)
    where = Path(address)
    return _made(f"{place}, {printable(where)}", partial(storage.read_bytes, where), partial(local_tag, where))


def _made(where: str, load: Callable[[], bytes], tag: Callable[[], str]) -> Image:
    return Image(path=where, split="", label="", where=where, load=load, tag=tag)


def _beside(file: str, path: str) -> str:
    """Return the address of an image: paths that are not absolute begin where the table lies."""
    if storage.is_remote(path) or Path(path).is_absolute():
        return path
    return f"{file.rpartition('/')[0]}/{path}" if storage.is_remote(file) else str(Path(file).parent / path)


def _type(table: Table, name: str) -> Any:
    return table.rows.features.arrow_schema.field(name).type


def _is_struct(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind) and {field.name for field in kind} >= _PARTS


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
