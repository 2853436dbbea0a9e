"""Shards in a bucket on a real S3 server: ranges, the local cache, changes, and a run that is killed twice."""

from __future__ import annotations

import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graceful import spec, tasks
from graceful.errors import DataError
from graceful.storage.server import client
from graceful.tasks.shards import blocks
from tests.integration.test_training import losses, run, weights
from tests.support.s3_server import environment, serving
from tests.support.shards import packed, samples, write

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[str]:
    with serving() as endpoint:
        yield endpoint


@pytest.fixture
def bucket() -> str:
    name = f"shards-{uuid.uuid4().hex[:8]}"
    client().create_bucket(Bucket=name)
    for number in range(4):
        put(name, number, packed(samples(150, start=150 * number)))
    return name


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def put(bucket: str, number: int, data: bytes) -> None:
    client().put_object(Bucket=bucket, Key=f"data/train-{number:03d}.tar", Body=data)


def document(files: str, **task: Any) -> dict[str, Any]:
    task = {"kind": "shards", "files": files, "members": {"image": "png"}, "size": 16, "channels": 1, **task}
    return {"model": "digits", "name": "v1", "task": task}


def build(files: str, **task: Any) -> Any:
    return tasks.build(spec.parse(document(files, **task)).task)


def test_a_bucket_gives_the_samples_of_files_and_is_asked_for_runs_of_neighbours(
    bucket: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 2**16)
    here = build(str(write(tmp_path / "s", samples(600), shards=4))).samples("train")
    for name in (f"s3://{bucket}/data/train-{{000..003}}.tar", f"s3://{bucket}/data/*.tar", f"s3://{bucket}/data/"):
        there = build(name, shuffle="full").samples("train")
        assert there.digest == here.digest
    assert (here.runs, there.runs) == (None, None)
    assert len(build(name).samples("train").runs.starts) == 5  # a shard is less than 16 MiB
    shuffled = build(name, shuffle={"kind": "blocks", "run": 10}).samples("train")
    assert shuffled.runs.starts[:2].tolist() == [0, 10]
    cached = home / "cache" / "shards" / "blocks"
    shutil.rmtree(cached)
    shuffled.runs.fetch_ahead(np.asarray([0]))
    deadline = time.monotonic() + 60
    while not list(cached.glob("??/*/????????")) and time.monotonic() < deadline:
        time.sleep(0.05)  # another thread fetches
    assert len(list(cached.glob("??/*"))) == 1
    some = np.arange(0, len(there), 7)
    for one, other in zip(there.read(some), here.read(some), strict=True):
        assert np.array_equal(one.pixels, other.pixels)


def test_the_local_cache_stays_below_its_limit_and_mends_itself(
    bucket: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 2**16)
    limit = 600_000  # of 2.5 MB
    with environment({"GRACEFUL_SHARD_CACHE_GB": str(limit / 1e9)}):
        train = build(f"s3://{bucket}/data/*.tar").samples("train")
        for _ in range(2):
            train.read(np.arange(len(train)))
        pixels = train.read(np.arange(1))[0].pixels
        cached = [path for path in (home / "cache" / "shards" / "blocks").rglob("0*") if path.is_file()]
        assert 0 < sum(path.stat().st_size for path in cached) <= limit * 17 / 16 + blocks.BLOCK
        for path in cached:
            path.write_bytes(b"rot" * (path.stat().st_size // 3))
        assert np.array_equal(train.read(np.arange(1))[0].pixels, pixels)
    with environment({"GRACEFUL_SHARD_CACHE_GB": "much"}), pytest.raises(Exception, match="must be a number of gigab"):
        build(f"s3://{bucket}/data/*.tar").samples("train")


def test_an_object_that_changes_under_the_run_is_refused(bucket: str, home: Path) -> None:
    train = build(f"s3://{bucket}/data/*.tar").samples("train")
    shutil.rmtree(home / "cache" / "shards" / "blocks")
    put(bucket, 0, packed(samples(150, start=1)))
    with pytest.raises(DataError, match=rf"s3://{bucket}/data/train-000.tar: it changed after this run opened it"):
        train.read(np.arange(len(train)))
    with pytest.raises(DataError, match=r"train-004.tar names no object; check the address"):
        build(f"s3://{bucket}/data/train-{{003..009}}.tar").samples("train")


def test_a_run_over_a_bucket_that_is_killed_twice_has_the_loss_trace_of_an_undisturbed_one(
    bucket: str, tmp_path: Path
) -> None:
    job = {
        **document(f"s3://{bucket}/data/*.tar", shuffle={"kind": "blocks", "run": 20, "window": 5}, shift=2),
        "train": {"epochs": 3, "batch_size": 32, "checkpoint_every": 4, "num_workers": 0, "engine": {"kind": "torch"}},
    }
    killed, undisturbed = ({"spec": job, "run_dir": str(tmp_path / name)} for name in "ab")
    for step, machine in ((10, "first"), (19, "second")):  # the second has neither index nor blocks
        with environment({"GRACEFUL_HOME": str(tmp_path / machine)}):
            assert run({**killed, "die_at_step": step})[:2] == (-signal.SIGKILL, [])
    status, answers, stderr = run(killed, undisturbed)
    assert status == 0, stderr
    assert [answer["resumed_from"] for answer in answers] == [16, None]
    assert len(losses(tmp_path / "a")) == answers[0]["steps"] > 24
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
