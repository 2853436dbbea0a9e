"""Prepare what training reads ahead of it, and bring it to the device beside the computation. Runs in workers.

One thread prepares, so that tasks, streams and predecessors are asked by one thread in the order of the steps. Images
are decoded by the threads of `tasks.image_listing.pool`, as many as the rank has CPUs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

AHEAD = 2
"""Pieces that are prepared while one is trained on: one would do if all took equally long."""
PIECE_SECONDS = 0.004
"""Seconds that preparing a piece may take: slices that take less are prepared several at a time."""
PIECE = 8
"""Slices of a piece at most."""
QUICK_SECONDS = 0.0002
"""What a slice may take that is not worth a thread."""
T = TypeVar("T")


def ahead(make: Callable[[int], T], count: int, *, depth: int, most: int = PIECE) -> Iterator[T]:
    """Yield `make(0)` to `make(count - 1)`; one thread makes them ahead, in up to `depth` pieces.

    A piece is one of them, or several where each takes a fraction of a millisecond, because waking a thread takes
    about as long. Those that take less than `QUICK_SECONDS` are made by the caller when it wants them; so is the first,
    which it would wait for anyway. What `make` raises is raised in its place. A caller that stops early waits for the
    piece in the making.

    Args:
        make: Makes one of them; never called twice at the same time.
        count: How many.
        depth: Pieces that are made ahead.
        most: Of a piece.
    """
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="slices")
    pieces: deque[Future[_Piece[T]]] = deque()
    start, size = 0, 1

    def next_piece() -> range:
        nonlocal start
        indices = range(start, min(start + size, count))
        start = indices.stop
        return indices

    try:
        while pieces or start < count:
            piece = pieces.popleft().result() if pieces else _piece(make, next_piece())
            quick = piece.seconds_each < QUICK_SECONDS
            size = 1 if quick else min(max(int(PIECE_SECONDS / piece.seconds_each), 1), 2 * size, most)
            while not quick and piece.error is None and len(pieces) < depth and start < count:
                pieces.append(thread.submit(_piece, make, next_piece()))
            yield from piece.items
            if piece.error is not None:
                raise piece.error
    finally:
        thread.shutdown(cancel_futures=True)


@dataclass(frozen=True, kw_only=True)
class _Piece(Generic[T]):
    """Some slices, how long each took, and what ended them early."""

    items: Sequence[T]
    seconds_each: float
    error: Exception | None


def _piece(make: Callable[[int], T], indices: range) -> _Piece[T]:
    items: list[T] = []
    error, begun = None, time.perf_counter()
    try:
        items.extend(map(make, indices))
    except Exception as e:  # noqa: BLE001  raised by the caller, after the slices before it
        error = e
    seconds = (time.perf_counter() - begun) / len(indices)
    return _Piece(items=items, seconds_each=max(seconds, 1e-9), error=error)


class Transfer:
    """Copies to a GPU on a stream of their own, from pinned memory; does nothing on the CPU.

    Args:
        device: Where batches go.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def sent(self, make: Callable[[], T]) -> tuple[T, torch.cuda.Event | None]:
        """Return what `make` returns, and what its copies are done with; called by the thread that prepares."""
        if self._stream is None:
            return make(), None
        with torch.cuda.stream(self._stream):
            value = make()
            return value, self._stream.record_event()

    def arrived(self, value: T, done: torch.cuda.Event | None) -> T:
        """Let the computation wait for copies, not the thread; returns their value."""
        if done is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(done)
            for tensor in _tensors(value):
                if tensor.is_cuda:
                    tensor.record_stream(current)
        return value


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors within mappings, tuples and objects that hold some."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _tensors(getattr(value, name))
