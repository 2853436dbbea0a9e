"""Folders that also live in a bucket, on a real S3 server behind a faulty proxy; and a run that changes machines."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graceful import spec, targets, tasks
from graceful.chain import Completeness
from graceful.errors import IntegrityError, StorageError
from graceful.models import bundle
from graceful.patience import ONE_TRY
from graceful.programs.messages import outbox
from graceful.programs.messages.outbox import Outbox
from graceful.programs.messages.webhook import Webhook
from graceful.storage import Mirror, objects, sha256_json
from graceful.storage.server import PART, client
from graceful.targets import writing
from graceful.training import trace
from tests.support.s3_server import BadRoad, environment, serving
from tests.support.webhook_receiver import Receiver, receiving

pytestmark = pytest.mark.integration
FILES = {"arch.json": 40, "weights.bin": 300_000, "deep/er/table.bin": 70_000, "empty": 0}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as endpoint:
        client().create_bucket(Bucket="mirror")
        yield endpoint


@pytest.fixture
def mirror(server: str, tmp_path: Path, request: pytest.FixtureRequest) -> Mirror:
    return Mirror(home=tmp_path / "home", uri=f"s3://mirror/{request.node.name}")


def elsewhere(mirror: Mirror, tmp_path: Path) -> Mirror:
    """The same bucket seen from another machine."""
    return Mirror(home=tmp_path / "elsewhere", uri=mirror.uri)


def folder(home: Path, *, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    for name, size in FILES.items():
        path = home / "versions" / "m-1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(generator.bytes(size))
    return home / "versions" / "m-1"


def test_a_message_that_was_not_delivered_outlives_its_machine(mirror: Mirror, tmp_path: Path) -> None:
    there = elsewhere(mirror, tmp_path)
    with receiving(500) as dead:
        hook = Webhook(url=dead.url, say=print, patience=ONE_TRY)
        Outbox(folder=mirror.home / "outbox", receiver=lambda _: hook, say=print, mirror=mirror).post(MESSAGE)
    (stored,) = objects.list_objects(mirror.copy_uri(mirror.home / "outbox"))
    assert b"path-secret" not in objects.read_object(stored.uri)
    with receiving(200) as alive:
        hook = Webhook(url=alive.url, say=print, patience=ONE_TRY)
        there_box = Outbox(folder=there.home / "outbox", receiver=lambda _: hook, say=print, mirror=there)
        there_box.restore()
        there_box.flush()
    assert [document["model_id"] for document in alive.documents()] == ["m-1"]
    assert objects.list_objects(mirror.copy_uri(mirror.home / "outbox")) == []


MESSAGE = {"kind": "verdict", "model": "glyphs", "model_id": "m-1", "event": None}


def box(mirror: Mirror, receiver: Receiver, lines: list[str], *, secret: str = "key-of-mine") -> Outbox:
    """The outbox of a command on a machine."""
    hook = Webhook(url=receiver.url, say=lines.append, patience=ONE_TRY, secret=secret)
    folder = mirror.home / "outbox"
    return Outbox(folder=folder, receiver=lambda _: hook, say=lines.append, mirror=mirror, secret=secret)


@pytest.fixture
def planted(mirror: Mirror) -> list[str]:
    """The names of three messages that somebody else wrote to a bucket, beside one of this home."""
    with receiving(500) as dead:
        box(mirror, dead, []).post(MESSAGE)
    root = mirror.copy_uri(mirror.home / "outbox")
    (own,) = objects.list_objects(root)
    forged = json.dumps({"id": "ab", **MESSAGE, "model_id": "m-forged"}).encode()
    name = own.uri.rpartition("/")[2]
    names = [f"{1:020d}-ab.json", f"{2:020d}.{'0' * 64}-ab.json", f"{3:020d}{name[20:]}"]
    for one in names:
        objects.write_object(f"{root}/{one}", forged)
    return names


def test_messages_that_others_wrote_to_the_bucket_are_not_signed(
    mirror: Mirror, tmp_path: Path, planted: list[str]
) -> None:
    there, lines = elsewhere(mirror, tmp_path), []
    with receiving(500) as dead:  # a command without the secret brings them here
        box(there, dead, [], secret="").restore()
    with receiving(200) as alive:
        command = box(there, alive, lines)
        command.restore()
        command.flush()
        assert [document["model_id"] for document in alive.documents()] == ["m-1"]
        assert len(lines) == 1
        assert all(name in lines[0] for name in planted)
        box(replace(there, uri=None), alive, lines).flush()
        assert len(alive.came) == 1
        box(there, alive, lines).post({**MESSAGE, "model_id": "m-2"})
        assert [document["model_id"] for document in alive.documents()] == ["m-1", "m-2"]
        box(there, alive, [], secret="").flush()
        assert len(alive.came) == 5


def test_a_planted_message_does_not_stand_for_one_of_the_same_id(mirror: Mirror) -> None:
    with receiving(200) as alive:
        key = sha256_json(outbox.identity(MESSAGE))[:32]
        objects.write_object(f"{mirror.copy_uri(mirror.home / 'outbox')}/{1:020d}-{key}.json", b"{}")
        box(mirror, alive, []).restore()
        box(mirror, alive, []).post(MESSAGE)
        assert [document["model_id"] for document in alive.documents()] == ["m-1"]


def test_a_damaged_message_in_the_bucket_ends_no_command(mirror: Mirror) -> None:
    bucket, key = objects.split_uri(f"{mirror.copy_uri(mirror.home / 'outbox')}/{1:020d}-ab.json")
    client().put_object(Bucket=bucket, Key=key, Body=b"x", Metadata={"sha256": "0" * 64})
    lines: list[str] = []
    with receiving(200) as alive:
        box(mirror, alive, lines).restore()
    assert [line for line in lines if "SHA-256" in line] == lines != []


def test_a_message_of_a_run_of_before_is_in_the_bucket_before_its_old_copy_goes(mirror: Mirror, tmp_path: Path) -> None:
    old = mirror.home / "runs" / "glyphs-v1" / "outbox" / "ab.json"
    old.parent.mkdir(parents=True)
    old.write_text(json.dumps({"id": "ab", **MESSAGE}))
    mirror.save(old.parent)
    there = elsewhere(mirror, tmp_path)
    with receiving(200) as alive:
        box(replace(mirror, uri="s3://no-such-bucket/home"), alive, []).adopt(old.parent)
        assert old.exists()
        box(mirror, alive, []).adopt(old.parent)
        assert (old.exists(), objects.list_objects(mirror.copy_uri(old.parent))) == (False, [])
        command = box(there, alive, [], secret="")
        command.restore()
        command.flush()
    assert [headers["X-Graceful-Delivery"] for headers, _ in alive.came] == ["ab"]


def test_a_bucket_that_is_away_does_not_make_a_message_come_twice(mirror: Mirror) -> None:
    lines: list[str] = []
    with receiving(500, 200) as receiver:
        box(replace(mirror, uri="s3://no-such-bucket/home"), receiver, lines).post(MESSAGE)
    assert len(receiver.came) == 1
    assert not [line for line in lines if "lost" in line]


def digests(root: Path) -> dict[str, str]:
    return {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in FILES}


@pytest.mark.parametrize(
    "road",
    [{"error": 0.4}, {"cut": 0.6}, {"pause": 0.01}, {"error": 0.2, "cut": 0.3, "pause": 0.005}],
    ids=["500s", "truncated bodies", "slow reads", "all of them"],
)
def test_a_folder_arrives_whole_over_a_bad_road(
    server: str, mirror: Mirror, tmp_path: Path, road: dict[str, float]
) -> None:
    sent = folder(mirror.home)
    there = elsewhere(mirror, tmp_path)
    with BadRoad(server, seed=3, most=40, **road) as proxy, environment({"AWS_ENDPOINT_URL": proxy.uri}):
        objects.list_objects("s3://mirror/nothing")
        mirror.seal(sent)
        assert there.unseal(there.home / "versions" / "m-1")
        assert proxy.met.total() > 0 or "pause" in road
    assert digests(there.home / "versions" / "m-1") == digests(sent)


def test_a_large_file_travels_in_parts(mirror: Mirror, server: str, tmp_path: Path) -> None:
    path = mirror.home / "runs" / "x" / "weights.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(np.random.default_rng(1).bytes(2 * PART + 12345))
    with BadRoad(server, error=0.3, most=6) as proxy, environment({"AWS_ENDPOINT_URL": proxy.uri}):
        objects.list_objects("s3://mirror/nothing")
        mirror.save(path.parent)
        parts = [one for one in proxy.seen if one.startswith("PUT") and "partNumber=" in one]
        assert len({one.partition("partNumber=")[2][:1] for one in parts}) == 3
        there = elsewhere(mirror, tmp_path)
        assert there.restore_file(there.home / "runs" / "x" / "weights.bin")
    assert (there.home / "runs" / "x" / "weights.bin").read_bytes() == path.read_bytes()


def test_an_interrupted_copy_fetches_only_what_is_missing(server: str, mirror: Mirror, tmp_path: Path) -> None:
    sent = folder(mirror.home)
    mirror.seal(sent)
    there = elsewhere(mirror, tmp_path)
    target = there.home / "versions" / "m-1"
    half = target.with_name("m-1.fetching")
    half.mkdir(parents=True)
    (half / "weights.bin").write_bytes((sent / "weights.bin").read_bytes())
    (half / "arch.json").write_bytes(b"torn")
    with BadRoad(server) as proxy, environment({"AWS_ENDPOINT_URL": proxy.uri}):
        assert there.unseal(target)
        asked = [one for one in proxy.seen if one.startswith("GET")]
    assert not any("weights.bin" in one for one in asked)
    assert digests(target) == digests(sent)


def test_a_half_copied_folder_does_not_count(mirror: Mirror, tmp_path: Path) -> None:
    sent = folder(mirror.home)
    mirror.save(sent)
    there = elsewhere(mirror, tmp_path)
    assert not there.unseal(there.home / "versions" / "m-1")
    mirror.seal(sent)
    assert there.unseal(there.home / "versions" / "m-1")


def test_an_altered_copy_is_refused_and_named(mirror: Mirror, tmp_path: Path) -> None:
    sent = folder(mirror.home)
    mirror.seal(sent)
    objects.write_object(f"{mirror.copy_uri(sent)}/weights.bin", b"altered, with a digest of its own")
    there = elsewhere(mirror, tmp_path)
    with pytest.raises(IntegrityError, match=r"weights\.bin: not the file that was sealed"):
        there.unseal(there.home / "versions" / "m-1")
    bucket, key = objects.split_uri(f"{mirror.copy_uri(sent)}/arch.json")
    client().put_object(Bucket=bucket, Key=key, Body=b"x", Metadata={"sha256": "0" * 64})
    with pytest.raises(IntegrityError, match=r"arch\.json: SHA-256 .* where 000000000000"):
        there.restore_file(there.home / "versions" / "m-1" / "arch.json")
    assert not (there.home / "versions" / "m-1" / "arch.json").exists()


def test_only_what_changed_is_sent_again(server: str, mirror: Mirror) -> None:
    sent = folder(mirror.home)
    mirror.save(sent, exclude=("deep",))
    (sent / "arch.json").write_text("{}")
    with BadRoad(server) as proxy, environment({"AWS_ENDPOINT_URL": proxy.uri}):
        mirror.save(sent, exclude=("deep",))
        assert [one.rpartition("/")[2].partition("?")[0] for one in proxy.seen] == ["arch.json"]


def test_a_server_that_goes_away_for_a_while_is_waited_for(server: str, mirror: Mirror) -> None:
    sent = folder(mirror.home)
    with BadRoad(server) as proxy, environment({"AWS_ENDPOINT_URL": proxy.uri, "AWS_MAX_ATTEMPTS": "1"}):
        objects.list_objects("s3://mirror/nothing")
        proxy.closed = True
        opening = subprocess.Popen(["sleep", "2"])
        threading.Thread(target=lambda: (opening.wait(), setattr(proxy, "closed", False))).start()
        mirror.seal(sent)
    assert mirror._index(sent) is not None


def test_the_driver_sees_the_trace_of_a_rank_elsewhere(mirror: Mirror, tmp_path: Path) -> None:
    rank, driver = mirror.home / "runs" / "x" / trace.FILE, tmp_path / "driver" / "runs" / "x" / trace.FILE
    fetcher = trace.Fetcher(driver, mirror=Mirror(home=tmp_path / "driver", uri=mirror.uri), seconds=0.0)
    follower = trace.Follower(fetcher.path)
    written = trace.Trace(rank, step=0)
    seen = []
    for step in (0, 1, 2, 3):
        written.write({"event": "start" if step == 0 else "step", "step": step})
        written.sync()
        mirror.save(rank.parent)
        fetcher.fetch()
        seen += [row["step"] for row in follower.rows()]
    written.close()
    resumed = trace.Trace(rank, step=1)
    resumed.write({"event": "start", "step": 1})
    resumed.write({"event": "step", "step": 2})
    resumed.close()
    mirror.save(rank.parent)
    fetcher.fetch()
    assert seen == [0, 1, 2, 3]
    assert [(row["event"], row["step"]) for row in follower.rows()] == [("start", 1), ("step", 2)]


def test_a_trace_that_grows_while_it_is_copied_arrives_whole(mirror: Mirror, tmp_path: Path) -> None:
    rank = mirror.home / "runs" / "x" / trace.FILE
    written, done = trace.Trace(rank, step=0), threading.Event()

    def grow() -> None:
        step = 0
        while not done.is_set():
            written.write({"event": "step", "step": (step := step + 1)})

    growing = threading.Thread(target=grow)
    growing.start()
    try:
        for _ in range(30):
            mirror.save(rank.parent)
            data, _ = mirror.read_if_changed(rank, None) or (b"", "")
            assert data
    finally:
        done.set()
        growing.join()
        written.close()
    there = elsewhere(mirror, tmp_path)
    there.restore(there.home / "runs" / "x")
    assert (there.home / "runs" / "x" / trace.FILE).stat().st_size > 0


SPEC = """
model: points
name: v1
task: {{kind: python, file: {task}, options: {{seconds: {seconds}}}}}
train: {{epochs: 5, batch_size: 8, num_workers: 0, checkpoint_every: 5, engine: {{kind: torch}}}}
evaluate: {{retrieval: false}}
gate: {{constraints: [{{metric: error_rate, bound: 0.4}}]}}
"""


def test_a_run_that_changes_machines_is_the_undisturbed_run(server: str, tmp_path: Path) -> None:
    task = Path(__file__).parents[1] / "support" / "slow_task.py"
    spec = tmp_path / "v1.yaml"
    spec.write_text(SPEC.format(task=task, seconds=0.02))
    command = [sys.executable, "-m", "graceful.cli", "train", str(spec)]

    def env(machine: str, storage: str) -> dict[str, str]:
        return {**os.environ, "GRACEFUL_HOME": str(tmp_path / machine), "GRACEFUL_STORAGE": f"s3://mirror/{storage}"}

    subprocess.run(command, env=env("quiet", "undisturbed"), check=True, capture_output=True, timeout=600)
    first = subprocess.Popen(command, env=env("lost", "moved"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while not any("step-000000010" in one.key for one in objects.list_objects("s3://mirror/moved")):
        assert time.monotonic() < end
        time.sleep(0.05)
    (program,) = _children(first.pid)
    os.kill(program, signal.SIGKILL)
    assert first.wait(timeout=120) != 0
    done = subprocess.run(command, env=env("new", "moved"), check=True, capture_output=True, text=True, timeout=600)
    # The machine may be lost while it copies the checkpoint of step 10; the one of step 5 is whole then.
    assert re.search(r"\bstep=(5|10)\b|resum", done.stderr), done.stderr
    weights = [tmp_path / machine / "runs" / "points-v1" / "model.safetensors" for machine in ("quiet", "new")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    rows = trace.read(weights[1].with_name(trace.FILE))
    steps = [row["step"] for row in rows if row["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1))


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_cache_begun_on_a_lost_machine_is_finished_on_another(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_FLUSH_EVERY", 1)
    section = spec.DigitsTask(classes=6)
    task = tasks.build(section)
    samples, wanted = task.samples("train"), spec.RefreshSpec(model="digits", name="v1", task=section)
    bundle.save(tmp_path / "v1", network=task.network(task.classes), spec=wanted, classes=task.classes)
    old = bundle.load(tmp_path / "v1")

    def stop(done: int, total: int) -> None:
        if done > 0.6 * total:
            raise KeyboardInterrupt

    def built(there: Mirror, progress: Any) -> targets.Cache:
        root = there.home / "targets"
        return targets.build(old, samples, views=None, root=root, mirror=there, batch_size=20, progress=progress)

    with pytest.raises(KeyboardInterrupt):
        built(mirror, stop)
    asked: list[int] = []
    cache = built(elsewhere(mirror, tmp_path), lambda done, _: asked.append(done))
    assert len(samples) / 2 < asked[0] < 0.6 * len(samples), "half of it had been copied"
    assert cache.check(old, samples, None).argmax == 1.0
    left = {one.key.split("/")[2] for one in objects.list_objects(f"{mirror.uri}/targets")}
    assert left == {cache.key}, "nothing is left of the unfinished one"

    third = Mirror(home=tmp_path / "third", uri=mirror.uri)
    gone = replace(old, completeness=Completeness.NOTHING)
    again = targets.build(gone, samples, views=None, root=third.home / "targets", mirror=third)
    assert (again.key, again.folder.parent) == (cache.key, third.home / "targets"), "it is all there is of that version"


def test_a_bucket_that_is_not_there_is_one_line(server: str, tmp_path: Path) -> None:
    there = Mirror(home=tmp_path, uri="s3://no-such-bucket/x")
    with pytest.raises(StorageError, match="no such bucket"):
        there.restore(tmp_path / "runs" / "x")
