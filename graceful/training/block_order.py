"""An order of samples that reads runs of neighbours, and how random it is. Runs in workers.

The runs of an epoch are permuted, every `window` of them in that order are put together, and the samples of a window
are permuted. Both permutations follow from the seed and the epoch alone, so that a run resumes exactly, whatever the
number of its workers.

How random is it? Let a window hold W runs of B samples.

- Two samples of one window come from the same run with the probability (B - 1) / (W B - 1), about 1/W; in a full
  permutation of N samples it is about B/N.
- If values of neighbours in a run have the correlation r (their labels, say), the mean over a batch of b samples has
  the variance of a fully random batch times 1 + (b - 1) r / W, up to terms of 1/B. With W = 64 and b = 128, shards that
  are sorted by class (r = 1) give 3.0 times the variance, and shards that were shuffled when they were written (r = 0)
  give the same.
- A sample that follows a given one in a window comes from the same run as often as any other sample of the window: the
  order has no memory within a window. Between windows nothing is shared but that every run is read once.
- The distance between the places of two neighbours of a run is at most W B, and W B / 3 on average; in a full
  permutation it is N / 3. The distance of a sample from its place in the files is N / 3 on average, as there.

`tests/unit/test_block_order.py` measures these numbers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from graceful.tasks.runs import Runs

KEPT = 4
"""Windows whose permutation is kept; the places that are asked for mostly lie in one."""


class BlockOrder:
    """The order of one epoch as a function of places in it.

    Args:
        runs: The runs of the training samples.
        key: Seed and epoch.
    """

    def __init__(self, runs: Runs, *, key: tuple[int, int]) -> None:
        self._starts, self._key = runs.starts, key
        lengths = np.diff(runs.starts)
        self._runs = np.random.Generator(np.random.PCG64([*key, 0])).permutation(len(lengths))
        ends = np.cumsum(lengths[self._runs])
        self._window, self._fetch_ahead = runs.window, runs.fetch_ahead
        self._bounds = np.concatenate([[0], ends[runs.window - 1 :: runs.window], ends[-1:]])
        self._positions = lru_cache(maxsize=KEPT)(self._shuffled)

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of the samples at some places, [B] -> [B] int64."""
        windows = np.searchsorted(self._bounds, places, side="right") - 1
        positions = np.empty(len(places), dtype=np.int64)
        for window in np.unique(windows).tolist():
            chosen = windows == window
            positions[chosen] = self._positions(window)[places[chosen] - self._bounds[window]]
        return positions

    def _shuffled(self, window: int) -> NDArray[np.int64]:
        """Return the positions of all samples of a window, in their order; the next window is fetched meanwhile."""
        runs, following = (self._runs_of(number) for number in (window, window + 1))
        if self._fetch_ahead is not None and len(following):
            self._fetch_ahead(following)
        members = np.concatenate([np.arange(self._starts[run], self._starts[run + 1]) for run in runs.tolist()])
        generator = np.random.Generator(np.random.PCG64([*self._key, 1 + window]))
        return np.asarray(members[generator.permutation(len(members))], dtype=np.int64)

    def _runs_of(self, window: int) -> NDArray[np.int64]:
        return np.asarray(self._runs[window * self._window : (window + 1) * self._window], dtype=np.int64)
