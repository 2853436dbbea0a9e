"""The rows of a stream, batch by batch, with the state from which a run resumes at the exact row. Runs in workers.

Every rank reads all rows and takes its own, so the rows of a step do not depend on the number of ranks, and neither
does the state at the beginning of a step: a checkpoint can be taken up by any number of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError, IntegrityError
from graceful.tasks.streams import Resumable, Row, Stream, as_json
from graceful.training.prefetch import AHEAD

KEPT = AHEAD + 2
"""Batches in memory: the one that is trained on, those that are prepared, and one more."""


class StreamRows(NamedTuple):
    """Some rows of a stream: names, labels and raw items."""

    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    items: list[Any]


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """The rows of one step as the stream gave them, and its state before the first of them; None: none was read."""

    rows: list[Any]
    state: Any


class StreamReader:
    """Reads a stream in its order. Its methods may be called from several threads.

    Args:
        stream: The rows.
        batch_size: Rows of a step over all ranks.
        steps_per_epoch: Steps of an epoch; rows that do not fill a batch are not read.
    """

    def __init__(self, stream: Stream, *, batch_size: int, steps_per_epoch: int) -> None:
        self._stream, self._size, self._steps = stream, batch_size, steps_per_epoch
        self._next = (0, 0)
        self._rows: Resumable | None = None
        self._iterator: Iterator[Any] = iter(())
        self._expected: str | None = None
        self._batches: dict[tuple[int, int], _Batch] = {}
        self._lock = threading.Lock()

    def read(self, positions: NDArray[np.int64], *, epoch: int) -> StreamRows:
        """Return the rows at some positions of an epoch, all in one step; steps are read in their order.

        Raises:
            DataError: The stream ends before, or a row is not what it must be.
            SpecError: An error of the user's code.
        """
        step, start = divmod(int(positions[0]), self._size)
        batch = self._batch(epoch, step)
        with self._stream.errors():
            rows = [self._row(batch, step, start + offset) for offset in (positions - positions[0]).tolist()]
        labels = np.asarray([row.label for row in rows], dtype=np.int64)
        return StreamRows(np.asarray([row.id for row in rows], dtype=np.str_), labels, [row.item for row in rows])

    def name(self, position: int, *, epoch: int) -> str:
        """Return the id of a row that was read a short while ago."""
        step, offset = divmod(position, self._size)
        batch = self._batches.get((epoch, step))
        return f"row {position}" if batch is None else self._row(batch, step, offset).id

    def state(self, step: int) -> dict[str, Any]:
        """Return from where a run goes on that has done so many steps, as JSON values.

        Raises:
            SpecError: The stream's own state is not made of these.
        """
        epoch, inside = divmod(step, self._steps)
        if inside == 0:
            return {"state": None, "first": None}
        batch = self._batch(epoch, inside)
        return {"state": as_json(batch.state), "first": self._row(batch, inside, 0).id}

    def resume(self, step: int, kept: dict[str, Any]) -> None:
        """Go on after so many steps, from what `state` returned."""
        self._next = epoch, inside = divmod(step, self._steps)
        if inside:
            self._open(epoch, kept["state"])
            self._expected = kept["first"]

    def _row(self, batch: _Batch, step: int, offset: int) -> Row:
        return self._stream.row(batch.rows[offset], step * self._size + offset)

    def _batch(self, epoch: int, step: int) -> _Batch:
        with self._lock:
            while (epoch, step) not in self._batches:
                assert self._next <= (epoch, step), "steps are read in their order"
                self._batches[self._next] = self._read_next()
                self._batches = dict(list(self._batches.items())[-KEPT:])
                done_epoch, done = self._next
                self._next = (done_epoch, done + 1) if done + 1 < self._steps else (done_epoch + 1, 0)
            return self._batches[epoch, step]

    def _read_next(self) -> _Batch:
        epoch, step = self._next
        if step == 0:
            self._open(epoch, None)
        assert self._rows is not None
        rows: list[Any] = []
        with self._stream.errors():
            state = None if step == 0 else self._rows.state_dict()
            for raw in self._iterator:
                rows.append(raw)
                if len(rows) == self._size:
                    break
        batch = _Batch(rows=rows, state=state)
        if len(rows) < self._size:
            read = step * self._size + len(rows)
            raise DataError(
                f"{self._where}: epoch {epoch + 1} of the stream ends after {read} rows, length says"
                f" {self._stream.length}; give the length that it has"
            )
        self._require_expected(batch, step)
        return batch

    def _open(self, epoch: int, state: Any) -> None:
        self._rows = self._stream.open(epoch)
        with self._stream.errors():
            if state is not None:
                self._rows.load_state_dict(state)
            self._iterator = iter(self._rows)

    def _require_expected(self, batch: _Batch, step: int) -> None:
        """Refuse a stream that did not go on at the row at which the run was interrupted."""
        expected, self._expected = self._expected, None
        if expected is None:
            return
        first = self._row(batch, step, 0).id
        if first != expected:
            raise IntegrityError(
                f"{self._where}: the stream went on at row {first!r:.60} where the run was interrupted before"
                f" {expected!r:.60}; its rows changed, or its state_dict() does not name the exact row, as that of a"
                " shuffle buffer"
            )

    @property
    def _where(self) -> str:
        return str(self._stream.path or "stream")
