"""Splits whose rows come one after the other, without random access. Driver and workers.

The rows of an epoch are an iterable with `state_dict()` and `load_state_dict()`, the protocol of `IterableDataset` of
Hugging Face datasets and of torchdata. Training reads them in their order and keeps the state in its checkpoints.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from graceful.errors import DataError, SpecError
from graceful.tasks.user_errors import user_file_errors

HEAD = 256
"""First rows by which a stream is checked, and its network tried, before training begins."""
Column = str | Callable[[Any], Any]
"""A key of a row, or a function of one."""


class Resumable(Protocol):
    """Rows that can go on where they were."""

    def __iter__(self) -> Iterator[Any]:
        """Begin, or go on after the row that the loaded state names."""
        ...

    def state_dict(self) -> Any:
        """Return where the iteration is, as JSON values."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Let the next iteration go on from a state."""
        ...


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: its name, its label as an index into the classes, and its raw item."""

    id: str
    label: int
    item: Any


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The rows of a split, epoch by epoch.

    Attributes:
        rows: Epoch, from 0 -> its rows from the first one on; the same ones whenever it is asked.
        length: Rows of an epoch; more are not read.
        classes: Names of the labels.
        digest: What changes when the rows do, such as the revision of a data set.
        id, label: Of a row: a text, and an index into the classes.
        item: The item of a row: what `transform` takes; None: the row itself.
        path: The user's file that made it, for messages.
    """

    rows: Callable[[int], Resumable]
    length: int
    classes: tuple[str, ...]
    digest: str
    id: Column = "id"
    label: Column = "label"
    item: Column | None = None
    path: Path | None = None

    def __post_init__(self) -> None:
        if not callable(self.rows) or isinstance(self.length, bool) or not isinstance(self.length, int):
            got = f"{self.rows!r:.40} and {self.length!r:.40}"
            raise DataError(f"stream: rows must be a function of the epoch and length a whole number, got {got}")
        if self.length < 1 or not isinstance(self.digest, str) or not self.digest:
            got = f"{self.length} and {self.digest!r:.40}"
            raise DataError(f"stream: length must be at least 1 and digest a text, got {got}")

    def errors(self) -> AbstractContextManager[None]:
        """Return a context in which errors of the user's code get its file and line."""
        return nullcontext() if self.path is None else user_file_errors(self.path)

    def open(self, epoch: int) -> Resumable:
        """Return the rows of an epoch.

        Raises:
            SpecError: They cannot go on where they were.
        """
        with self.errors():
            rows = self.rows(epoch)
        for name in ("__iter__", "state_dict", "load_state_dict"):
            if not callable(getattr(rows, name, None)):
                raise SpecError(
                    f"{self._where}rows({epoch}) returned a {type(rows).__name__} without {name}; return an iterable"
                    " with state_dict() and load_state_dict(), such as an IterableDataset of datasets"
                )
        return rows

    def first(self, count: int) -> list[Row]:
        """Return the first rows of the first epoch, as far as there are so many.

        Raises:
            SpecError: The stream cannot be resumed, or an error of the user's code.
            DataError: As of `row`.
        """
        rows = self.open(0)
        with self.errors():
            first = [self.row(raw, position) for position, raw in enumerate(itertools.islice(rows, count))]
            state = rows.state_dict()
        as_json(state)
        return first

    def row(self, raw: Any, position: int) -> Row:
        """Return a row as training takes it.

        Args:
            raw: As the stream gave it.
            position: In its epoch, for messages.

        Raises:
            DataError: It has no such key, its id is not text, or its label no index into the classes.
        """
        name, label = self._value(raw, self.id, position), self._value(raw, self.label, position)
        if not isinstance(name, str) or not name:
            raise DataError(f"{self._where}row {position} has the id {name!r:.40}; must be text")
        number = label.item() if hasattr(label, "item") else label
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(self.classes):
            raise DataError(
                f"{self._where}row {position} ({name!r:.60}) has the label {label!r:.40}; must be an index into the"
                f" {len(self.classes)} classes"
            )
        return Row(id=name, label=number, item=raw if self.item is None else self._value(raw, self.item, position))

    def _value(self, raw: Any, column: Column, position: int) -> Any:
        if callable(column):
            return column(raw)
        try:
            return raw[column]
        except (KeyError, IndexError, TypeError) as e:
            raise DataError(f"{self._where}row {position} has no {column!r}; name the key, or give a function") from e

    @property
    def _where(self) -> str:
        return "stream: " if self.path is None else f"{self.path}: stream: "


def as_json(state: Any) -> Any:
    """Return a state as a checkpoint keeps it.

    Raises:
        SpecError: It is not made of JSON values alone, so that it would not come back as it is.
    """
    try:
        kept = json.loads(json.dumps(state, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as e:
        raise SpecError(f"stream: state_dict() is not made of JSON values ({e}), which a checkpoint keeps") from e
    if kept != state:
        raise SpecError(
            "stream: state_dict() holds tuples or keys that are not texts; use lists and texts, as JSON does"
        )
    return kept
