"""Prepare what training reads ahead of it, and bring it to the device beside the computation. Runs in workers.

One thread prepares, so that tasks, streams and predecessors are asked by one thread in the order of the steps. Images
are decoded by the threads of `tasks.image_listing.pool`, as many as the rank has CPUs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

AHEAD = 2
"""Slices that are prepared while one is trained on: one would do if all took equally long."""
T = TypeVar("T")


def ahead(make: Callable[[int], T], count: int, *, depth: int) -> Iterator[T]:
    """Yield `make(0)` to `make(count - 1)`; one thread makes up to `depth` of them ahead.

    What `make` raises is raised in its place. A caller that stops early waits for the one in the making.
    """
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="slices")
    waiting: deque[Future[T]] = deque()
    try:
        for index in range(count + depth):
            if index < count:
                waiting.append(thread.submit(make, index))
            if index >= depth:
                yield waiting.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)


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
