"""The files of a cache as arrays on disk, compared with what a cache must have: they may come from a bucket."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from graceful.errors import IntegrityError, one_line
from graceful.storage.arrays import read_header
from graceful.targets import layouts

_COLUMNS = {
    "ids.npy": ("S", "N"),
    "views.npy": ("u8", "VN"),
    "offsets.npy": ("f4", "VN"),
    "present.npy": ("b1", "VN"),
    "embeddings.npy": ("f2 f4", "VNd"),
    "logits.npy": ("f2", "VNC"),
    layouts.LABELS: ("u2 u4", "VNK"),
    layouts.VALUES: ("f2", "VNK"),
    layouts.REST: ("f2", "VN"),
}
"""Types and axes: views, samples, size of the embedding, classes, logits kept."""
_ALWAYS = {"ids.npy", "offsets.npy", "present.npy", "embeddings.npy"}


def mapped(folder: Path, *, names: Collection[str], classes: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of a cache by file name, memory-mapped: a header that promises too much takes no memory.

    Args:
        folder: The folder of the cache.
        names: The names of its files, as its description lists them.
        classes: The classes of the predecessor.

    Raises:
        IntegrityError: A file is missing or unknown, or has another type or shape than the others want.
    """
    top = {layouts.LABELS, layouts.VALUES, layouts.REST}
    logits = {"logits.npy"} if "logits.npy" in names else top
    if set(names) - {"views.npy"} != _ALWAYS | logits:
        raise _damaged(folder, f"lists the files {', '.join(sorted(names))}, not those of a cache")
    sizes, arrays = {"C": classes}, {}
    for name in sorted(names):
        kinds, axes = _COLUMNS[name]
        array = _mapped(folder, name)
        kind, shape = f"{array.dtype.kind}{array.dtype.itemsize}", array.shape
        expected_shape = [sizes.setdefault(axis, size) for axis, size in zip(axes, shape, strict=False)]
        if not (kind in kinds.split() or kind[0] == kinds) or list(shape) != expected_shape or len(axes) != len(shape):
            raise _damaged(folder, f"{name} is {kind} of shape {shape}, which does not fit the others")
        arrays[name] = array
    return arrays


def _mapped(folder: Path, name: str) -> NDArray[Any]:
    try:
        with (folder / name).open("rb") as file:
            read_header(file, name=name)
        return npy.open_memmap(folder / name, mode="r")
    except (ValueError, OSError) as e:
        raise _damaged(folder, f"{name} cannot be read ({one_line(e):.200})") from e


def _damaged(folder: Path, problem: str) -> IntegrityError:
    return IntegrityError(f"{folder}: {problem}; delete the folder and run again, it is rebuilt")
