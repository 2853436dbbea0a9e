"""The block-shuffled order: a permutation, a function of seed and epoch alone, and as random as its module says."""

from __future__ import annotations

import numpy as np
import pytest

from graceful.tasks.runs import Runs, cut
from graceful.training.block_order import BlockOrder
from graceful.training.sampler import Sampler

BOUNDS = np.asarray([0, 1000, 1003, 4000, 8191])


def sampler(world_size: int = 1, *, run: int = 16, window: int = 8, bounds: np.ndarray = BOUNDS) -> Sampler:
    runs = Runs(starts=cut(bounds, run=run), window=window)
    return Sampler(samples=int(bounds[-1]), batch_size=64, accumulation=2, world_size=world_size, seed=3, runs=runs)


def test_runs_end_where_files_end() -> None:
    starts = cut(np.asarray([0, 5, 5, 9]), run=3)
    assert starts.tolist() == [0, 3, 5, 8, 9]


@pytest.mark.parametrize("run", [1, 16, 10_000])
@pytest.mark.parametrize("window", [1, 8, 10_000])
def test_an_epoch_is_a_permutation_that_the_seed_and_the_epoch_determine(run: int, window: int) -> None:
    runs = Runs(starts=cut(BOUNDS, run=run), window=window)
    places = np.arange(BOUNDS[-1])
    first = BlockOrder(runs, key=(0, 0))(places)
    assert np.array_equal(np.sort(first), places)
    assert np.array_equal(first, BlockOrder(runs, key=(0, 0))(places))
    assert np.array_equal(first[5000:5010], BlockOrder(runs, key=(0, 0))(places[5000:5010]))  # a run that resumes
    for key in ((0, 1), (1, 0)):
        assert not np.array_equal(first, BlockOrder(runs, key=key)(places))


def test_the_samples_of_a_step_do_not_depend_on_the_number_of_workers() -> None:
    alone, four = sampler(), sampler(4)
    assert np.array_equal(alone.epoch(2).reshape(-1, 64), four.epoch(2).reshape(-1, 64))
    resumed = [four.slices(2, first_step=70, rank=rank) for rank in range(4)]
    step = np.concatenate([resumed[rank][index] for index in range(2) for rank in range(4)])
    assert np.array_equal(step, alone.epoch(2)[70].ravel())


def test_few_runs_are_read_at_a_time_and_each_once() -> None:
    run, window = 16, 8
    order = sampler(run=run, window=window, bounds=np.asarray([0, 8192])).epoch(0).ravel() // run
    for start in range(0, 8192, run * window):
        assert len(set(order[start : start + run * window].tolist())) == window


def test_the_next_window_is_fetched_while_one_is_read() -> None:
    fetched: list[set[int]] = []
    starts = cut(np.asarray([0, 100]), run=10)
    runs = Runs(starts=starts, window=4, fetch_ahead=lambda runs: fetched.append(set(runs.tolist())))
    order = BlockOrder(runs, key=(0, 0))
    places = np.arange(100)
    read = [set((order(places[start : start + 40]) // 10).tolist()) for start in (0, 40, 80)]
    assert fetched == read[1:]


def test_it_is_as_random_as_its_module_says() -> None:
    """100 epochs of 8,192 samples in runs of 32, whose label is that of the run: neighbours correlate with r = 1."""
    run, window, count, batch = 32, 16, 8192, 64
    runs = Runs(starts=cut(np.asarray([0, count]), run=run), window=window)
    values = np.repeat(np.random.default_rng(0).normal(size=count // run), run)
    same, variances, near, moved = [], [], [], []
    for epoch in range(100):
        order = BlockOrder(runs, key=(0, epoch))(np.arange(count))
        places = np.argsort(order)
        same.append(np.mean(order[1:] // run == order[:-1] // run))
        variances.append(values[order].reshape(-1, batch).mean(1).var())
        near.append(np.abs(np.diff(places.reshape(-1, run), axis=1)).mean())
        moved.append(np.abs(places - np.arange(count)).mean())
    assert np.mean(same) == pytest.approx(1 / window, rel=0.05)
    fully_random = values.var() / batch
    assert np.mean(variances) / fully_random == pytest.approx(1 + (batch - 1) / window, rel=0.1)
    assert np.mean(near) == pytest.approx(window * run / 3, rel=0.05)
    assert np.mean(moved) == pytest.approx(count / 3, rel=0.05)
