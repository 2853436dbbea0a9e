"""Files of data that a spec names, alone or by split. Runs in every process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from graceful import addresses

Split = Literal["train", "validation", "constraint", "test", "query", "gallery"]


def require_splits(
    files: tuple[str, ...] | Mapping[Split, tuple[str, ...]], *, key: str, named: bool, what: str
) -> None:
    """Refuse files without a training split, and splits that are named twice.

    Args:
        files: The files of the task.
        key: What may name the split of a sample instead, e.g. `columns.split`.
        named: Whether it does.
        what: A file, for the message.

    Raises:
        ValueError: They do not fit.
    """
    if not isinstance(files, Mapping):
        if not files:
            raise ValueError(f"files must name at least one {what}")
        return
    if named:
        raise ValueError(f"files names splits, and {key} as well; keep one of them")
    if not files.get("train"):
        raise ValueError("files has no train split; add files: {train: ...}")


def _listed(files: Any) -> Any:
    """Return one name as a list of one."""
    if isinstance(files, Mapping):
        return {split: _listed(names) for split, names in files.items()}
    return (files,) if isinstance(files, str) else files


def _addresses(files: Any) -> Any:
    if isinstance(files, Mapping):
        return {split: _addresses(names) for split, names in files.items()}
    return tuple(map(_address, files))


def _address(name: str) -> str:
    if addresses.has_other_scheme(name):
        raise ValueError(f"must be a local path or s3://bucket/key, got {name}")
    return addresses.in_document(name) if addresses.is_remote(name) else name


Files = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_addresses)]
"""Paths, patterns or addresses; one may stand without a list."""
FilesBySplit = Annotated[
    tuple[str, ...] | dict[Split, tuple[str, ...]], BeforeValidator(_listed), AfterValidator(_addresses)
]
"""The same, or the same for each split."""
