"""Fetch the runs of shards in a bucket that training reads next. Workers."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from graceful.tasks.shards.files import RemoteShard
from graceful.tasks.shards.index import Index

THREADS = 4
"""Runs that are fetched at the same time; reading has the other connections."""
Span = tuple[RemoteShard, int, int]
"""A shard, the first byte, and how many bytes."""


class FetchAhead:
    """Brings runs to the cache of blocks in the background, where two windows of them fit there.

    Args:
        index: The index of the shards.
        chosen: [N] samples of the split.
        starts: [R + 1] first position of each run, and N.
    """

    def __init__(self, index: Index, chosen: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        self._index, self._chosen, self._starts = index, chosen, starts
        self._offsets, self._sizes = index.array("offsets"), index.array("sizes")
        self._stop = threading.Event()

    def __call__(self, runs: NDArray[np.int64]) -> None:
        """Begin to fetch some runs; what is left of those before is dropped.

        Processes of a machine share the cache, so each begins with another run.
        """
        spans = [span for span in map(self._span, runs.tolist()) if span is not None]
        if not spans or 2 * sum(size for _, _, size in spans) > spans[0][0].cache.limit:
            return
        self._stop.set()
        self._stop = threading.Event()
        first = os.getpid() % len(spans)
        spans = spans[first:] + spans[:first]
        for number in range(THREADS):
            arguments = (spans[number::THREADS], self._stop)
            threading.Thread(target=_fetch, args=arguments, name=f"fetch-ahead-{number}", daemon=True).start()

    def _span(self, run: int) -> Span | None:
        """Return where a run lies; None: in a file of this machine."""
        first, last = (int(self._chosen[position]) for position in (self._starts[run], self._starts[run + 1] - 1))
        shard, _ = self._index.place(first)
        if not isinstance(shard, RemoteShard):
            return None
        begins, ends = self._offsets[first], self._offsets[last] + self._sizes[last]
        start = int(begins[begins >= 0].min())
        return shard, start, int(ends.max()) - start


def _fetch(spans: Sequence[Span], stop: threading.Event) -> None:
    for shard, start, size in spans:
        if stop.is_set():
            return
        shard.fetch(start, size)
