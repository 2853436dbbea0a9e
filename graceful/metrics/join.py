"""Join predictions of versions by sample id, never by position: duplicates, padding and order do not matter. NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError


def sorted_unique(ids: NDArray[Any], columns: Mapping[str, NDArray[Any] | None], *, where: str) -> NDArray[np.int64]:
    """Return the first position of each id, in the order of the ids.

    Loaders pad and samplers repeat: an id may occur again with equal content.

    Args:
        ids: [N] strings or whole numbers.
        columns: Name -> [N, ...] what must agree between duplicates (NaN agrees with NaN); None is skipped.
        where: What the ids belong to, for the message.

    Raises:
        DataError: An id occurs twice with different content.
    """
    order = np.argsort(ids, kind="stable").astype(np.int64)
    ranked = ids[order]
    first = np.ones(len(ids), dtype=np.bool_)
    first[1:] = ranked[1:] != ranked[:-1]
    if first.all():
        return order
    run = np.cumsum(first) - 1
    unique_rows = order[first]
    duplicates, original = order[~first], unique_rows[run[~first]]
    for name, column in columns.items():
        if column is None:
            continue
        differs = ~_same(column[duplicates], column[original])
        if differs.any():
            example = ids[duplicates[np.argmax(differs)]]
            raise DataError(
                f"{where}: {int(differs.sum())} duplicate ids with different {name}, e.g. {str(example)!r};"
                " an id must say the same each time it occurs"
            )
    return unique_rows


def _same(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.bool_]:
    equal: NDArray[np.bool_] = np.equal(first, second)
    if first.dtype.kind == "f":
        equal = np.logical_or(equal, np.logical_and(np.isnan(first), np.isnan(second)))
    flat: NDArray[np.bool_] = equal.reshape(len(equal), -1)
    return np.logical_and.reduce(flat, axis=1)  # type: ignore[no-any-return]


def require_same_ids(first_ids: NDArray[Any], second_ids: NDArray[Any], *, names: tuple[str, str]) -> None:
    """Check that two sorted arrays of unique ids are equal.

    Raises:
        DataError: With how many ids are missing on each side and an example.
    """
    if len(first_ids) == len(second_ids) and bool(np.all(first_ids == second_ids)):
        return
    first, second = set(first_ids.tolist()), set(second_ids.tolist())
    parts = [
        f"{len(missing)} ids only in {name}, e.g. {min(missing, key=str)!r}"
        for name, missing in ((names[0], first - second), (names[1], second - first))
        if missing
    ]
    raise DataError(
        f"{names[0]} ({len(first_ids)} ids) and {names[1]} ({len(second_ids)} ids) do not join: {'; '.join(parts)};"
        " evaluate both on the same split"
    )


def encode(table: dict[Any, int], names: NDArray[Any]) -> NDArray[np.int64]:
    """Return the number names by a shared table, which grows."""
    return np.fromiter((table.setdefault(name, len(table)) for name in names.tolist()), np.int64, len(names))
