"""What a folder and a bucket must do for the commits of an index, and what a bucket's server must know."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graceful.errors import DataError, IntegrityError, SpecError, StorageError
from graceful.index import Index, files
from graceful.index.log import MovedError
from graceful.index.places import Bucket, Folder, Place, at
from graceful.storage import objects
from graceful.storage.server import client
from tests.support import s3_server
from tests.unit.test_index import NEW, OLD, vectors


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def address(new_place: Callable[[], str]) -> str:
    return new_place()


def replace_file(place: Place, name: str, data: bytes) -> None:
    """Overwrite what nobody may overwrite."""
    if isinstance(place, Folder):
        (place.path / name).write_bytes(data)
    else:
        objects.write_object(f"{place}/{name}", data)


def test_one_of_several_writers_creates_a_file(address: str) -> None:
    places = [at(address) for _ in range(5)]
    for number in range(20):
        made: list[bytes] = []

        def create(place: Place, text: bytes, name: str = f"manifests/{number}", made: list[bytes] = made) -> None:
            if place.create(name, text):
                made.append(text)

        writers = [threading.Thread(target=create, args=(place, b"%d" % row)) for row, place in enumerate(places)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert [places[0].read(f"manifests/{number}")] == made, "one has written, and it is what is there"
    assert sorted(places[0].names("manifests"), key=int) == [str(number) for number in range(20)]
    assert sorted(places[0].names("manifests", after="7")) == ["8", "9"]
    assert not places[0].create("manifests/3", b"later")


def test_files_are_written_read_and_removed(address: str) -> None:
    place = at(address)
    assert place.names("manifests") == []
    with pytest.raises(StorageError, match="segments/a"):
        place.read("segments/a")
    for _ in range(2):
        place.write("segments/a", b"content")
    assert place.read("segments/a") == place.read("segments/a", sha256="0" * 64) == b"content"
    assert place.exists("segments/a")
    assert not place.exists("segments/b")
    for _ in range(2):
        place.remove("segments/a")
    assert not place.exists("segments/a")


def test_a_log_sees_what_came_since_and_an_index_that_was_made_anew(address: str, home: Path) -> None:
    index = Index.create(address, vectors(), OLD)
    for number in range(3):
        Index.open(address).add(vectors(2, prefix=f"y{number}"), OLD)
        assert index.head().number == number + 2
    for name in index.place.names("manifests"):
        index.place.remove(f"manifests/{name}")
    with pytest.raises(DataError, match="holds no index"):
        index.head()
    Index.create(address, vectors(7), OLD)
    assert (index.head().number, index.head().count) == (1, 7)


def test_writers_in_processes_of_their_own_lose_no_commit(address: str, home: Path) -> None:
    Index.create(address, vectors(), OLD)
    program = (
        "import sys; from graceful.index import Index; from tests.unit.test_index import NEW, OLD, vectors\n"
        "for n in range(4): Index.open(sys.argv[1]).add(vectors(3, prefix=f'{sys.argv[2]}-{n}-'), OLD)"
    )
    env = {**os.environ, "GRACEFUL_HOME": str(home)}
    writers = [
        subprocess.Popen([sys.executable, "-c", program, address, name], env=env, stderr=subprocess.PIPE, text=True)
        for name in ("y", "z")
    ]
    for writer in writers:
        _, said = writer.communicate(timeout=600)
        assert writer.returncode == 0, said
    index = Index.open(address)
    assert index.log.numbers() == list(range(1, 10))
    assert index.head().counts == {"minilm": 64}
    assert index.backend.verify(index.head()) == []


def test_every_change_is_a_snapshot_that_can_be_brought_back(address: str) -> None:
    index = Index.create(address, vectors(), OLD, reason="first")
    first = index.view()
    index.add(vectors(5, prefix="y", seed=2), OLD)
    index.add(vectors(3, seed=9), OLD, replacing=True)  # x000 to x002 anew
    index.delete(np.asarray(["x003", "y001"]))
    head = index.head()
    assert (head.number, head.count, head.payload) == (4, 43, {"label": "text", "shelf": "integer"})
    assert first.count("minilm") == 40, "a view is one snapshot"
    view = index.view()
    assert view.located(np.asarray(["x000", "x003", "y000"])) == ["minilm", "", "minilm"]
    expected = vectors(3, seed=9).checked(dimension=8, where="here")
    assert np.array_equal(view.read("minilm", expected.ids).vectors, expected.vectors)
    assert view.read("minilm", np.asarray(["y000"])).payload["label"].tolist() == ["y000"]
    query = vectors(1, seed=9).vectors
    assert index.search({"minilm": query}, k=1).ids.tolist() == [["x000"]]
    assert index.rollback(2).number == 5
    again = Index.open(address)
    assert again.head().content == 2
    assert again.view().ids("minilm").tolist() == index.view(index.log.read(2)).ids("minilm").tolist()
    assert again.search({"minilm": query}, k=1).ids.tolist() != [["x000"]]
    assert [again.backend.verify(again.log.read(number)) for number in again.log.numbers()] == [[]] * 5


def test_a_second_writer_adds_to_what_the_first_one_did(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index.create(address, vectors(), OLD)
    other = Index.open(address)
    stage = type(index.backend).stage

    def slow(self: Any, head: Any, changes: Any) -> Any:
        monkeypatch.setattr(type(index.backend), "stage", stage)
        other.add(vectors(2, prefix="y"), OLD)  # meanwhile
        return stage(self, head, changes)

    monkeypatch.setattr(type(index.backend), "stage", slow)
    assert index.add(vectors(2, prefix="z"), OLD).counts == {"minilm": 44}
    assert index.view().located(np.asarray(["y000", "z000"])) == ["minilm", "minilm"]
    with pytest.raises(MovedError, match="another writer committed snapshot 3 meanwhile"):
        index.log.commit(replace(index.log.read(2), number=3))


@pytest.mark.parametrize("kind", ["segment", "manifest", "later"])
def test_an_altered_index_is_refused(kind: str, address: str, home: Path) -> None:
    index = Index.create(address, vectors(), OLD)
    name = index.head().parts[0].file if kind == "segment" else "manifests/00000001.json"
    data = bytearray(index.place.read(name))
    data[-9] ^= 1
    if kind == "later":
        data = bytearray(json.dumps({**json.loads(index.place.read(name)), "format": 2}).encode())
    replace_file(index.place, name, bytes(data))
    if kind == "segment":
        (problem,) = index.backend.verify(index.head())
        assert "SHA-256" in problem
        shutil.rmtree(home, ignore_errors=True)  # with the copies of a bucket
        with pytest.raises(IntegrityError, match="SHA-256"):
            Index.open(address).view()
        return
    with pytest.raises(DataError if kind == "later" else IntegrityError) as caught:
        Index.open(address)
    assert {"manifest": "manifest", "later": "of format 2"}[kind] in caught.value.message


def test_commands_take_either_address(
    address: str, tmp_path: Path, command_line: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Vectors and indices in a bucket are used by the same commands as those in a folder."""
    beside = address.rpartition("/")[0]
    old, new = f"{beside}/old.npz", f"{beside}/new.npz"
    for where, space in ((old, OLD), (new, NEW)):
        files.write(tmp_path / "file.npz", vectors(), space)
        data = (tmp_path / "file.npz").read_bytes()
        at(beside).write(where.removeprefix(f"{beside}/"), data)

    def run(*arguments: str, code: int = 0) -> Any:
        done = command_line(*arguments, "-o", "json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if code == 0 else done.stderr

    run("index", "build", address, "--vectors", old, "--backend", "faiss", "--option", "exact_below=0")
    found = run("index", "query", address, "--vectors", old, "-k", "1")
    assert [item["hits"][0]["id"] for item in found["queries"]] == vectors().ids.tolist()
    assert run("backfill", "run", address, "--vectors", new, "--stop-at", "0.5", "--batch", "8")["state"] == "stopped"
    assert run("backfill", "status", address)["done"] == 20
    same = run("compare-search", address, address, "--queries", old, "--queries", new, "-k", "3")
    assert (same["a"]["index"], same["b"]["vectors"]) == (address, 40)
    assert run("backfill", "run", address, "--vectors", new)["serving"] == "e5"
    assert run("index", "verify", address)["problems"] == []
    assert "no such" in run("backfill", "run", address, "--vectors", f"{beside}/none.npz", code=2)


@pytest.fixture
def unsigned() -> Iterator[str]:
    """A server that checks no signatures, so that a proxy may change requests, and a bucket on it."""
    with s3_server.unsigned() as endpoint:
        client().create_bucket(Bucket="gallery")
        yield endpoint


@pytest.mark.integration
def test_a_server_that_ignores_conditions_is_refused_before_the_first_commit(unsigned: str) -> None:
    road = s3_server.BadRoad(unsigned, without="If-None-Match")
    with road, s3_server.environment({"AWS_ENDPOINT_URL": road.uri}):
        with pytest.raises(StorageError, match="the server ignores `If-None-Match"):
            Index.create("s3://gallery/old", vectors(), OLD)
        assert Bucket("s3://gallery/old").names("manifests") == []


@pytest.mark.integration
def test_a_commit_whose_answer_was_lost_is_not_taken_for_that_of_another_writer(unsigned: str) -> None:
    index = Index.create("s3://gallery/index", vectors(), OLD)
    road = s3_server.BadRoad(unsigned, lost=1.0, most=1)
    with road, s3_server.environment({"AWS_ENDPOINT_URL": road.uri}):
        made = index.log.commit(index.head().after(action="accept"))
        assert (road.met["lost"], index.head()) == (1, made)


@pytest.mark.integration
def test_segments_are_read_from_copies_on_this_machine(unsigned: str, home: Path) -> None:
    Index.create("s3://gallery/copies", vectors(), OLD)
    with s3_server.BadRoad(unsigned) as road, s3_server.environment({"AWS_ENDPOINT_URL": road.uri}):
        for _ in range(2):
            index = Index.open("s3://gallery/copies")
            assert index.view().count("minilm") == 40
        assert not [line for line in road.seen if "segments" in line], "the writer has left a copy"
        assert index.backend.verify(index.head()) == []
        assert len([line for line in road.seen if "segments" in line]) == 1, "to verify is to look at the bucket"
    for copy in (home / "cache" / "objects").glob("*/*"):
        if copy.suffix != ".sha256":
            copy.write_bytes(b"damaged")
    assert Index.open("s3://gallery/copies").view().count("minilm") == 40


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("gs://bucket/index", "index gs://bucket/index: must be a folder or s3://bucket/prefix"),
        ("s3:/bucket/index", "must look like s3://bucket/prefix (write s3://bucket/index)"),
        ("s3://bucket//index", "with single slashes"),
    ],
)
def test_addresses_that_are_none_are_refused(address: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        Index.open(address)
    assert message in caught.value.message


@pytest.mark.parametrize("backend", ["pgvector", "qdrant"])
def test_backends_that_need_a_lock_refuse_a_bucket(backend: str) -> None:
    with pytest.raises(SpecError, match=f"backend {backend} keeps a second writer out by a lock file"):
        Index.create("s3://bucket/index", vectors(), OLD, backend=backend)
