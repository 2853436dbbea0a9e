"""What a cache keeps of logits, how large that is, and which caches go when there is no room."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from graceful import spec, targets, tasks
from graceful.chain import Predecessor
from graceful.targets import layouts
from graceful.targets.eviction import evict
from graceful.tasks.base import Samples
from tests.support.predecessors import digits_version

SECTION = spec.DigitsTask()


@pytest.fixture(scope="module")
def samples() -> Samples:
    return tasks.build(SECTION).samples("train")


def version(seed: int) -> Predecessor:
    return digits_version(SECTION, seed)


def test_the_top_is_exact_and_the_rest_is_its_mean(samples: Samples, tmp_path: Path) -> None:
    old, rows = version(1), np.arange(len(samples))
    whole = targets.build(old, samples, views=None, root=tmp_path).rows(rows)
    top = targets.build(old, samples, views=None, root=tmp_path, top=4)
    found = top.rows(rows)
    (largest, rest), (kept, mean) = (
        out.sort(1, descending=True).values.split([4, 6], 1) for out in (whole.logits, found.logits)
    )
    assert torch.equal(kept, largest)
    torch.testing.assert_close(mean, rest.mean(1, keepdim=True).expand(-1, 6), rtol=2e-3, atol=2e-3)
    assert torch.equal(found.logits.argmax(1), whole.logits.argmax(1))
    assert torch.equal(found.embedding, whole.embedding)
    top.check(old, samples, None).require("top")


def test_a_cache_of_the_top_is_another_cache_and_all_classes_are_no_top(samples: Samples, tmp_path: Path) -> None:
    old = version(1)
    keys = [targets.build(old, samples, views=None, root=tmp_path, top=top).key for top in (None, 3, 4, 10, 99)]
    assert len(set(keys)) == 3
    assert keys[0] == keys[3] == keys[4]


@pytest.mark.parametrize("top", [None, 3])
def test_the_documented_bytes_are_those_on_disk(samples: Samples, tmp_path: Path, top: int | None) -> None:
    cache = targets.build(version(1), samples, views=None, root=tmp_path, top=top)
    arrays = [path for path in cache.folder.glob("*.npy") if path.name != "ids.npy"]
    content = sum(np.load(path, mmap_mode="r").nbytes for path in arrays)
    assert content == layouts.bytes_per_sample(classes=10, size=64, top=top) * len(samples)


def test_ten_million_samples_of_a_thousand_classes_fit_on_a_disk() -> None:
    assert 10_000_000 * layouts.bytes_per_sample(classes=1000, size=128) == 22_610_000_000
    assert 10_000_000 * layouts.bytes_per_sample(classes=1000, size=128, top=32) == 3_910_000_000


def test_many_classes_have_wider_labels() -> None:
    assert layouts.label_type(65_536).itemsize == 2
    assert layouts.label_type(65_537).itemsize == 4
    random = np.random.default_rng(0)
    shifted = -np.abs(random.normal(size=(3, 70_000))).astype(np.float32)
    shifted[:, 69_999] = 0.0
    blocks = layouts.encode_top(shifted, top=2)
    assert (blocks[layouts.LABELS] == 69_999).any(axis=1).all()


def test_logits_far_below_the_maximum_stay_finite() -> None:
    shifted = np.array([[0.0, -1.0, -65504.0, -65504.0]], dtype=np.float32)
    blocks = layouts.encode_top(shifted, top=2)
    assert np.isfinite(blocks[layouts.REST]).all()


# --- room -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(samples: Samples, tmp_path: Path) -> list[str]:
    """Keys of three caches, the least recently used first."""
    keys = [targets.build(version(seed), samples, views=None, root=tmp_path).key for seed in (1, 2, 3)]
    for age, key in enumerate(keys):
        os.utime(tmp_path / key / "meta.json", (1_000_000 + age, 1_000_000 + age))
    return keys


def test_the_least_recently_used_caches_go_first(three: list[str], tmp_path: Path) -> None:
    size = sum(path.stat().st_size for path in (tmp_path / three[0]).iterdir())
    assert evict(tmp_path, limit=3 * size + 10) == []
    assert evict(tmp_path, limit=2 * size + 10) == three[:1]
    assert evict(tmp_path, limit=0, keep=three[1:2]) == three[2:]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == three[1:2]


def test_opening_a_cache_is_a_use(three: list[str], tmp_path: Path) -> None:
    targets.Cache.open(tmp_path / three[0])
    assert evict(tmp_path, limit=0)[0] == three[1]


def test_a_cache_that_is_open_stays_and_one_that_was_dropped_goes(three: list[str], tmp_path: Path) -> None:
    opened = dataclasses.replace(targets.Cache.open(tmp_path / three[0]), device=torch.device("cpu"))
    assert evict(tmp_path, limit=0) == three[1:]
    assert len(opened.rows(np.arange(3)).logits) == 3
    del opened
    assert evict(tmp_path, limit=0) == three[:1]


def test_a_cache_that_another_process_has_open_stays(three: list[str], tmp_path: Path) -> None:
    code = "import sys, graceful.targets as t; c = t.Cache.open(sys.argv[1]); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / three[0])], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"open\n"
        assert three[0] not in evict(tmp_path, limit=0)
        reader.communicate(b"\n")
    assert evict(tmp_path, limit=0) == three[:1]


def test_a_deleted_cache_is_rebuilt(three: list[str], samples: Samples, tmp_path: Path) -> None:
    evict(tmp_path, limit=0)
    assert targets.build(version(1), samples, views=None, root=tmp_path).key == three[0]
