"""The digits task: mechanics that every other task shares."""

import sys

import numpy as np
import pytest

from graceful import tasks
from graceful.errors import DataError
from graceful.spec import DigitsTask
from graceful.tasks import digits

CLOSED = ("train", "validation", "constraint", "test")


def opened(name, **options):
    return tasks.build(DigitsTask(**options)).samples(name)


def test_splits_are_disjoint_and_together_everything():
    ids = [set(opened(name).ids.tolist()) for name in CLOSED]
    assert len(set.union(*ids)) == sum(map(len, ids)) == 1797


def test_growing_data_is_nested():
    small, large = opened("train", share=0.3, classes=6), opened("train", share=0.7)
    assert set(small.ids.tolist()) < set(large.ids.tolist())
    assert np.array_equal(opened("test", share=0.3).ids, opened("test").ids)


def test_another_split_seed_draws_another_test_split():
    assert set(opened("test").ids.tolist()) != set(opened("test", split=1).ids.tolist())
    assert opened("test").digest != opened("test", split=1).digest


def test_a_share_that_empties_a_class_is_refused_with_the_remedy():
    with pytest.raises(DataError, match=r"task\.share: 0\.002 leaves no train image of .*; use a larger one"):
        opened("train", share=0.002)


def test_there_is_no_open_set():
    with pytest.raises(KeyError):
        opened("query")


def test_views_move_digits_deterministically():
    task = tasks.build(DigitsTask(shift=1))
    samples = task.samples("train")
    items = samples.read(np.arange(50))
    views = tasks.view_numbers(samples.ids[:50], seed=0, epoch=0)
    assert task.transform(items, views).equal(task.transform(items, views))
    assert not task.transform(items, views).equal(task.transform(items, None))


def test_without_scikit_learn_the_error_names_what_to_install(monkeypatch):
    digits._digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        opened("train")
    digits._digits.cache_clear()
