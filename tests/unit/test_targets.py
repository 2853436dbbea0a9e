"""The cache of predecessor outputs: exact within fp16, joined by id, resumable, refused when damaged, built once."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graceful import locks, spec, targets, tasks
from graceful.chain import OldOutputs, Predecessor, freeze
from graceful.errors import DataError, IntegrityError, SpecError, StorageError
from graceful.learners import Classifier
from graceful.models.base import Outputs
from graceful.targets import Cache, Live, Mean, blocks, files, writing
from graceful.targets.blocks import Block
from graceful.tasks.base import Samples
from graceful.tasks.names import Names, ids_digest
from tests.support.predecessors import digits_version

SECTION = spec.DigitsTask(shift=2)
BATCH = 100


@pytest.fixture(scope="module")
def samples() -> Samples:
    return tasks.build(SECTION).samples("train")


@pytest.fixture(scope="module")
def views(samples: Samples) -> NDArray[np.uint64]:
    return targets.key_views(samples.ids, seed=3, count=3)


@pytest.fixture(scope="module")
def old() -> Predecessor:
    return _version(1)


def _version(seed: int) -> Predecessor:
    return digits_version(SECTION, seed)


class Constant(nn.Module):
    """Says the same about every sample, whatever is needed at the edge of fp16."""

    def __init__(self, embedding: list[float], logits: list[float]) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.tensor(embedding))
        self.logits = nn.Parameter(torch.tensor(logits))

    def embed(self, x: Tensor) -> Tensor:
        return self.embedding.expand(len(x), -1)

    def classify(self, embedding: Tensor) -> Tensor:
        return self.logits.expand(len(embedding), -1)


def _constant(old: Predecessor, embedding: list[float], logits: list[float]) -> Predecessor:
    network = freeze(Constant(embedding, logits))
    classes = tuple(f"c{i}" for i in range(len(logits)))
    digest = json.dumps([embedding, logits])
    return dataclasses.replace(old, network=network, classes=classes, embedding_size=len(embedding), digest=digest)


class Counted(NamedTuple):
    version: Predecessor
    batches: list[int]


def _counted(version: Predecessor, *, fail_after: int | None = None) -> Counted:
    """The same version, which notes its batches and is killed after so many."""
    batches: list[int] = []

    def transform(items: Any, numbers: NDArray[np.uint64] | None) -> Tensor:
        if fail_after is not None and len(batches) == fail_after:
            raise KeyboardInterrupt
        batches.append(len(items))
        return version.learner.collate(items, numbers)

    return Counted(dataclasses.replace(version, learner=Classifier(transform)), batches)


def _content(cache: Cache) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(cache.folder.iterdir())}


def _assert_exact(cached: OldOutputs, live: Outputs | OldOutputs) -> None:
    """Half a unit in the last place of fp16, relative to the distance from the maximum; the argmax untouched."""
    assert cached.logits.dtype == cached.embedding.dtype == torch.float32
    top = live.logits.amax(1, keepdim=True)
    assert ((cached.logits - live.logits).abs() <= 2.0**-11 * (top - live.logits) + 1e-6).all()
    torch.testing.assert_close(cached.embedding, live.embedding, rtol=2.0**-11, atol=1e-6)
    assert torch.equal(cached.logits.argmax(1), live.logits.argmax(1))


# --- exactness --------------------------------------------------------------------------------------------------------


def test_clean_rows_equal_live_outputs_within_fp16(samples: Samples, old: Predecessor, tmp_path: Path) -> None:
    cache = targets.build(old, samples, views=None, root=tmp_path, batch_size=BATCH)
    positions = np.random.default_rng(0).permutation(len(samples))
    cached, live = cache.rows(positions), old(samples.read(positions))
    assert cached.present.all()
    _assert_exact(cached, live)


def test_keyed_rows_equal_live_outputs_of_the_same_view(
    samples: Samples, old: Predecessor, views: NDArray[np.uint64], tmp_path: Path
) -> None:
    cache = targets.build(old, samples, views=views, root=tmp_path, batch_size=BATCH)
    positions = np.arange(0, len(samples), 7)
    for view in range(3):
        batch = (positions, samples.read(positions), views[view, positions], view)
        cached, live = cache.fetch(*batch), Live(predecessor=old).fetch(*batch)
        assert torch.equal(cached.present, live.present)
        _assert_exact(cached, live)
    assert not torch.allclose(cache.rows(positions, 0).logits, cache.rows(positions, 1).logits, atol=1e-3)


def test_a_keyed_cache_refuses_views_it_does_not_hold(
    samples: Samples, old: Predecessor, views: NDArray[np.uint64], tmp_path: Path
) -> None:
    cache = targets.build(old, samples, views=views, root=tmp_path)
    positions = np.arange(10)
    with pytest.raises(DataError, match="not the cached view 1"):
        cache.fetch(positions, None, views[0, :10], 1)
    with pytest.raises(DataError, match="asked for view 3"):
        cache.fetch(positions, None, views[0, :10], 3)
    with pytest.raises(DataError, match="clean samples"):
        cache.fetch(positions, None, None, 0)


def test_logits_beyond_fp16_keep_their_differences(samples: Samples, old: Predecessor, tmp_path: Path) -> None:
    far = _constant(old, [1.0], [1e6, 1e6 - 8.0, -1e6, 3.0])
    outputs = targets.build(far, samples, views=None, root=tmp_path).rows(np.arange(2))
    assert outputs.present.all()
    assert outputs.logits[0, 0] - outputs.logits[0, 1] == 8.0
    assert outputs.logits[0, 2] == 1e6 - 65504.0


@pytest.mark.parametrize(("value", "kind"), [(60_000.0, np.float16), (1e6, np.float32)])
def test_embeddings_are_fp32_only_where_fp16_overflows(
    samples: Samples, old: Predecessor, tmp_path: Path, value: float, kind: type
) -> None:
    cache = targets.build(
        _constant(old, [value, 1.0], [0.0, 1.0]), samples, views=None, root=tmp_path, batch_size=BATCH
    )
    assert cache.embeddings.dtype == kind
    assert cache.rows(np.arange(3)).embedding[2].tolist() == [value, 1.0]


def test_an_overflow_late_in_the_build_starts_again_with_fp32(
    samples: Samples, old: Predecessor, tmp_path: Path
) -> None:
    def transform(items: Any, numbers: Any) -> Tensor:
        x = old.learner.collate(items, numbers)
        return x * 1e7 if len(items) < BATCH else x

    late = dataclasses.replace(old, learner=Classifier(transform))
    cache = targets.build(late, samples, views=None, root=tmp_path, batch_size=BATCH)
    assert cache.embeddings.dtype == np.float32
    torch.testing.assert_close(cache.rows(np.arange(5)).embedding, old(samples.read(np.arange(5))).embedding)


def test_outputs_that_are_not_finite_are_not_present(samples: Samples, old: Predecessor, tmp_path: Path) -> None:
    broken = _constant(old, [1.0], [math.nan, 1.0])
    cache = targets.build(broken, samples, views=None, root=tmp_path)
    for outputs in (
        cache.rows(np.arange(4)),
        Live(predecessor=broken).fetch(np.arange(4), samples.read(np.arange(4)), None, 0),
    ):
        assert not outputs.present.any()
        assert outputs.logits.isfinite().all()
    assert cache.coverage(samples.ids) == 0.0
    assert math.isnan(cache.correct_share(samples.labels))
    with pytest.raises(DataError, match="covers 0 of"):
        cache.aligned(samples.ids)


# --- joining ----------------------------------------------------------------------------------------------------------


def test_rows_are_joined_by_id_in_any_order(samples: Samples, old: Predecessor, tmp_path: Path) -> None:
    cache = targets.build(old, samples, views=None, root=tmp_path)
    shuffled = np.random.default_rng(1).permutation(len(samples))
    ids = np.concatenate([samples.ids[shuffled], np.array(["a/stranger-with-a-long-name", "été"])])
    there = cache.aligned(ids)
    assert len(there) == len(samples) + 2
    positions = np.array([0, 5, len(samples), len(samples) + 1, -1])
    outputs = there.rows(positions)
    assert outputs.present.tolist() == [True, True, False, False, False]
    assert torch.equal(outputs.logits[:2], cache.rows(shuffled[[0, 5]]).logits)
    assert outputs.logits[2:].abs().sum() == 0.0
    assert cache.align(samples.ids).tolist() == list(range(len(samples)))


def test_ids_that_are_read_lazily_make_and_find_the_same_cache(
    samples: Samples, old: Predecessor, tmp_path: Path
) -> None:
    ids = np.asarray(samples.ids)
    lazy = dataclasses.replace(samples, ids=Names(len(ids), lambda positions: ids[positions], digest=ids_digest(ids)))
    cache = targets.build(old, lazy, views=None, root=tmp_path / "lazy")
    assert _content(cache) == _content(targets.build(old, samples, views=None, root=tmp_path / "array"))
    assert cache.aligned(lazy.ids).order is None  # found by the digest: no id is read
    assert cache.coverage(lazy.ids) == 1.0
    assert cache.check(old, lazy, None).argmax == 1.0
    reverse = Names(len(ids), lambda positions: ids[::-1][positions])
    assert cache.align(reverse).tolist() == list(range(len(ids)))[::-1]


def test_coverage_below_half_is_refused(samples: Samples, old: Predecessor, tmp_path: Path) -> None:
    cache = targets.build(old, samples, views=None, root=tmp_path)
    strangers = np.array([f"x{i}" for i in range(len(samples))])
    assert cache.coverage(np.concatenate([samples.ids, strangers])) == 0.5
    assert len(cache.aligned(np.concatenate([samples.ids, strangers]))) == 2 * len(samples)
    with pytest.raises(DataError, match=f"covers {len(samples)} of {2 * len(samples) + 1} ids, bound 50%; check that"):
        cache.aligned(np.concatenate([samples.ids, strangers, ["one more"]]))


def test_correct_counts_only_classes_the_old_version_knows(samples: Samples, old: Predecessor, tmp_path: Path) -> None:
    cache = targets.build(old, samples, views=None, root=tmp_path)
    labels = old(samples.read(np.arange(len(samples)))).logits.argmax(1).numpy()
    assert cache.correct_share(labels) == 1.0
    labels[: len(labels) // 2] = (labels[: len(labels) // 2] + 1) % 10
    labels[-50:] = -1
    judged = len(labels) - 50
    assert cache.correct_share(labels) == pytest.approx((judged - len(labels) // 2) / judged)
    assert math.isnan(cache.correct_share(np.full(len(labels), -1)))


def test_check_tells_the_version_apart_from_another(
    samples: Samples, old: Predecessor, views: NDArray[np.uint64], tmp_path: Path
) -> None:
    cache = targets.build(old, samples, views=views, root=tmp_path)
    same = cache.check(old, samples, views, count=200)
    assert same.argmax == 1.0
    assert same.mean_kl < 1e-6
    assert same.count == 200
    same.require("cache")
    other = cache.check(_version(2), samples, views, count=200)
    assert other.argmax < 0.9
    with pytest.raises(IntegrityError, match=r"cache: cached and live outputs agree on .* bound 90%.* rebuilt"):
        other.require("cache")
    assert cache.check(old, samples, views[::-1], count=200).mean_kl > 100 * same.mean_kl


def test_the_mean_of_reference_runs_has_mean_logits_and_no_embedding(
    samples: Samples, old: Predecessor, tmp_path: Path
) -> None:
    second = _version(2)
    mean = Mean(sources=(targets.build(old, samples, views=None, root=tmp_path), Live(predecessor=second)))
    positions = np.arange(9)
    outputs = mean.fetch(positions, samples.read(positions), None, 0)
    wanted = (old(samples.read(positions)).logits + second(samples.read(positions)).logits) / 2.0
    torch.testing.assert_close(outputs.logits, wanted, rtol=1e-3, atol=1e-4)
    assert outputs.embedding.shape == (9, 0)
    assert outputs.present.all()
    gap = mean.fetch(np.array([0, -1]), samples.read(positions[:2]), None, 0)
    assert gap.present.tolist() == [True, False], "what one source does not know has no mean"


# --- identity and integrity -------------------------------------------------------------------------------------------


def test_a_finished_cache_is_reused_and_everything_it_depends_on_makes_another(
    samples: Samples, old: Predecessor, views: NDArray[np.uint64], tmp_path: Path
) -> None:
    counted = _counted(old)
    first = targets.build(counted.version, samples, views=None, root=tmp_path)
    done = len(counted.batches)
    assert targets.build(counted.version, samples, views=None, root=tmp_path, batch_size=7).key == first.key
    assert len(counted.batches) == done
    others = {
        targets.build(version, data, views=numbers, root=tmp_path).key
        for version, data, numbers in [
            (dataclasses.replace(old, digest="d"), samples, None),
            (dataclasses.replace(old, transform_digest="t"), samples, None),
            (old, dataclasses.replace(samples, digest="s"), None),
            (old, dataclasses.replace(samples, ids=samples.ids[::-1].copy()), None),
            (old, samples, views),
            (old, samples, views[:2]),
        ]
    }
    assert len(others | {first.key}) == 7


@pytest.fixture
def keyed(samples: Samples, old: Predecessor, views: NDArray[np.uint64], tmp_path: Path) -> Cache:
    return targets.build(old, samples, views=views[:1], root=tmp_path)


@pytest.mark.parametrize("name", ["logits.npy", "offsets.npy", "embeddings.npy", "present.npy", "views.npy", "ids.npy"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_refused(keyed: Cache, name: str, damage: str) -> None:
    cache = keyed
    path = cache.folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    if damage != "remove":
        path.write_bytes(bytes(data) if damage == "flip" else bytes(data[:-1]))
    with pytest.raises(IntegrityError, match=rf"{name}.*delete .* and run again"):
        Cache.open(cache.folder)


def test_a_damaged_cache_is_not_reused(samples: Samples, old: Predecessor, tmp_path: Path) -> None:
    cache = targets.build(old, samples, views=None, root=tmp_path)
    (cache.folder / "offsets.npy").unlink()
    with pytest.raises(IntegrityError, match="missing"):
        targets.build(old, samples, views=None, root=tmp_path)


def test_large_files_are_checked_by_size_and_samples(
    samples: Samples, old: Predecessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_WHOLE", 1000)
    monkeypatch.setattr(files, "_SAMPLE", 16)
    cache = targets.build(old, samples, views=None, root=tmp_path)
    facts = json.loads((cache.folder / files.META).read_text())["files"]["logits.npy"]
    assert sorted(facts) == ["bytes", "sampled", "sha256"]
    Cache.open(cache.folder)
    path = cache.folder / "logits.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match="sampled must be"):
        Cache.open(cache.folder)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("logits.npy", np.zeros((1, 5, 3), np.float16), r"is f2 of shape \(1, 5, 3\), which does not fit the others"),
        ("offsets.npy", np.zeros((1, 2, 3), np.float32), "offsets.npy is f4 of shape"),
        ("present.npy", np.zeros((1, 1), np.float32), "present.npy is f4 of shape"),
        ("ids.npy", None, r"ids.npy cannot be read \(mmap length is greater than file size"),
        ("views.npy", np.asarray([None]), "views.npy cannot be read"),
        ("other.npy", np.zeros(1), "lists the files"),
    ],
)
def test_a_file_of_a_cache_that_another_wrote_is_no_surprise(
    keyed: Cache, name: str, array: NDArray[Any] | None, words: str
) -> None:
    """Its digests are right, as of whoever may write to the bucket."""
    path, described = keyed.folder / name, keyed.folder / files.META
    if array is not None:
        np.save(path, array)
    else:
        with path.open("wb") as file:
            huge = {"descr": "|S9", "fortran_order": False, "shape": (10**12,)}
            np.lib.format.write_array_header_1_0(file, huge)
    meta = json.loads(described.read_text())
    described.write_text(json.dumps(meta | {"files": meta["files"] | {name: files.fingerprint(path, whole=True)}}))
    with pytest.raises(IntegrityError, match=f"{words}.*; delete the folder and run again"):
        Cache.open(keyed.folder)


def test_a_damaged_or_foreign_description_is_refused(samples: Samples, old: Predecessor, tmp_path: Path) -> None:
    cache = targets.build(old, samples, views=None, root=tmp_path)
    renamed = cache.folder.rename(tmp_path / ("0" * 64))
    with pytest.raises(IntegrityError, match="not this folder"):
        Cache.open(renamed)
    (renamed / files.META).write_text("{")
    with pytest.raises(IntegrityError, match="damaged"):
        Cache.open(renamed)
    with pytest.raises(StorageError, match="no finished cache"):
        Cache.open(tmp_path / "nothing")


def test_shapes_that_do_not_fit_are_refused(
    samples: Samples, old: Predecessor, views: NDArray[np.uint64], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="do not fit"):
        targets.build(old, samples, views=views[:, :-1], root=tmp_path)
    with pytest.raises(DataError, match=r"must give \(classes, embedding\) \(10, 32\)"):
        targets.build(dataclasses.replace(old, embedding_size=32), samples, views=None, root=tmp_path)


# --- interruptions, neighbours, full disks ----------------------------------------------------------------------------


def test_an_interrupted_build_continues_and_ends_with_the_same_bytes(
    samples: Samples, old: Predecessor, views: NDArray[np.uint64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_FLUSH_EVERY", 3)
    whole = _counted(old)
    wanted = targets.build(whole.version, samples, views=views, root=tmp_path / "whole", batch_size=BATCH)
    with pytest.raises(KeyboardInterrupt):
        targets.build(_counted(old, fail_after=13).version, samples, views=views, root=tmp_path, batch_size=BATCH)
    partial = tmp_path / f"{wanted.key}.partial"
    with (partial / "logits.npy").open("ab") as file:
        file.write(b"half a row")
    rest, seen = _counted(old), []
    cache = targets.build(
        rest.version,
        samples,
        views=views,
        root=tmp_path,
        batch_size=BATCH,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert len(rest.batches) == len(whole.batches) - 12
    assert seen[-1] == (3 * len(samples), 3 * len(samples))
    assert _content(cache) == _content(wanted)
    assert not partial.exists()


def test_whoever_computes_the_rows_may_look_ahead(
    samples: Samples, old: Predecessor, views: NDArray[np.uint64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_FLUSH_EVERY", 3)
    wanted = targets.build(old, samples, views=views, root=tmp_path / "here", batch_size=BATCH)
    asked: list[Block] = []

    def elsewhere(given: Iterable[Block]) -> Iterator[Outputs]:
        """Takes three blocks before it answers the first."""
        waiting: deque[Outputs] = deque()
        for block in given:
            asked.append(block)
            waiting.append(blocks.run(old, samples, block))
            if len(waiting) == 3:
                yield waiting.popleft()
        yield from waiting

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    build = partial(targets.build, old, samples, views=views, root=tmp_path, batch_size=BATCH, compute=elsewhere)
    with pytest.raises(KeyboardInterrupt):
        build(progress=stop)
    first = len(asked)
    cache = build()
    assert _content(cache) == _content(wanted)
    assert asked[first].view * len(samples) + asked[first].start >= len(samples), "what was counted was not asked again"
    assert all(np.array_equal(block.numbers, views[block.view, block.start : block.stop]) for block in asked)


def test_answers_of_another_shape_are_refused_whoever_gives_them(
    samples: Samples, old: Predecessor, tmp_path: Path
) -> None:
    def cut(given: Iterable[Block]) -> Iterator[Outputs]:
        for block in given:
            found = blocks.run(old, samples, block)
            yield Outputs(found.embedding, found.logits[:-1])

    with pytest.raises(DataError, match=r"must give \(classes, embedding\)"):
        targets.build(old, samples, views=None, root=tmp_path, batch_size=BATCH, compute=cut)


def test_rows_that_were_never_counted_are_computed_again(samples: Samples, old: Predecessor, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        targets.build(_counted(old, fail_after=2).version, samples, views=None, root=tmp_path, batch_size=BATCH)
    again = _counted(old)
    cache = targets.build(again.version, samples, views=None, root=tmp_path, batch_size=BATCH)
    assert sum(again.batches) == len(samples)
    assert cache.check(old, samples, None).argmax == 1.0


def test_two_builders_of_one_cache_do_the_work_once(samples: Samples, old: Predecessor, tmp_path: Path) -> None:
    counted, caches = _counted(old), []
    start = threading.Barrier(2)

    def work() -> None:
        start.wait()
        caches.append(targets.build(counted.version, samples, views=None, root=tmp_path, batch_size=BATCH))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counted.batches) == len(samples)
    assert caches[0].key == caches[1].key
    assert caches[0].check(old, samples, None).argmax == 1.0


_HOLD = """
import fcntl, sys
file = open(sys.argv[1], "ab")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_builder_waits_for_another_process_and_outlives_its_death(
    samples: Samples, old: Predecessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, exclusive = threading.Event(), locks.exclusive

    def announced(path: Path, *, seconds: float | None) -> AbstractContextManager[None]:
        asked.set()
        return exclusive(path, seconds=seconds)

    key = targets.build(old, samples, views=None, root=tmp_path / "other").key
    counted = _counted(old)
    command = [sys.executable, "-c", _HOLD, str(tmp_path / f"{key}.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as neighbour:
        assert neighbour.stdout is not None
        assert neighbour.stdout.readline() == "held\n"
        builder = threading.Thread(
            target=targets.build, args=(counted.version, samples), kwargs={"views": None, "root": tmp_path}
        )
        monkeypatch.setattr(locks, "exclusive", announced)
        builder.start()
        assert asked.wait(timeout=30)
        assert counted.batches == []
        neighbour.kill()
    builder.join(timeout=30)
    assert Cache.open(tmp_path / key).coverage(samples.ids) == 1.0


def test_too_little_space_is_refused_before_anything_is_computed(
    samples: Samples, old: Predecessor, views: NDArray[np.uint64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: Usage(free=1000))
    counted = _counted(old)
    with pytest.raises(StorageError, match=r"needs [\d,]+ more bytes .* 1,000 are free") as caught:
        targets.build(counted.version, samples, views=views, root=tmp_path)
    data = 3 * len(samples) * (2 * 10 + 4 + 2 * 64 + 1)
    assert data <= caught.value.facts["needed"] <= data + 4 * 256
    assert counted.batches == []


def test_a_disk_that_fills_up_keeps_what_was_counted(
    samples: Samples, old: Predecessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_FLUSH_EVERY", 1)
    flushed: list[int] = []

    def fsync(handle: int) -> None:
        flushed.append(handle)
        if len(flushed) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(writing.os, "fsync", fsync)
        with pytest.raises(StorageError, match="disk is full; free some space, the build goes on"):
            targets.build(old, samples, views=None, root=tmp_path, batch_size=BATCH)
    rest = _counted(old)
    targets.build(rest.version, samples, views=None, root=tmp_path, batch_size=BATCH)
    assert 0 < sum(rest.batches) < len(samples)


def test_samples_that_cannot_be_read_are_an_error_of_the_data(
    samples: Samples, old: Predecessor, tmp_path: Path
) -> None:
    def read(positions: NDArray[np.int64]) -> Any:
        raise FileNotFoundError(errno.ENOENT, "No such file", "a.png")

    with pytest.raises(DataError, match=r"cannot be read .*a\.png"):
        targets.build(old, dataclasses.replace(samples, read=read), views=None, root=tmp_path)


# --- which views ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "augments", "decided"),
    [
        ("auto", False, "clean"),
        ("auto", True, "keyed"),
        ("clean", False, "clean"),
        ("keyed", False, "clean"),
        ("keyed", True, "keyed"),
        ("live", False, "live"),
        ("live", True, "live"),
    ],
)
def test_the_mode_follows_from_augmentation(mode: str, augments: bool, decided: str) -> None:
    assert targets.plan_views(spec.Targets.model_validate({"mode": mode}), augments=augments) == decided


def test_stale_targets_need_consent() -> None:
    with pytest.raises(SpecError, match=r"write keyed or live, or add allow_stale: true"):
        targets.plan_views(spec.Targets(mode="clean"), augments=True)
    assert targets.plan_views(spec.Targets(mode="clean", allow_stale=True), augments=True) == "clean"


def test_stale_rows_serve_any_view(
    samples: Samples, old: Predecessor, views: NDArray[np.uint64], tmp_path: Path
) -> None:
    cache = targets.build(old, samples, views=None, root=tmp_path)
    positions = np.arange(5)
    outputs = cache.fetch(positions, None, views[2, :5], 2)
    assert torch.equal(outputs.logits, cache.rows(positions).logits)


def test_view_keys_are_one_row_per_view_and_follow_ids(samples: Samples) -> None:
    keys = targets.key_views(samples.ids, seed=1, count=4)
    assert keys.shape == (4, len(samples))
    assert keys.dtype == np.uint64
    assert np.array_equal(targets.key_views(samples.ids[::-1], seed=1, count=4), keys[:, ::-1])
    assert not np.array_equal(targets.key_views(samples.ids, seed=2, count=4), keys)
