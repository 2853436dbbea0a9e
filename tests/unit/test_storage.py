"""Files are whole or absent, digests are of content alone, and objects as far as no server is needed."""

import dataclasses
import errno
import hashlib
import os
import stat

import pytest
from botocore.exceptions import EndpointConnectionError

from graceful import files, storage
from graceful.errors import InfrastructureError, IntegrityError, SpecError, StorageError
from graceful.launch.job import JobSpec
from graceful.launch.local.backend import LocalBackend
from graceful.launch.local.jobfolder import JobFolder, State
from graceful.launch.local.profile import Local
from graceful.storage import server
from tests.support.limits import largest_file


def test_a_digest_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * 3_000_000)
    assert storage.sha256_file(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_a_json_digest_ignores_the_order_of_keys_and_nothing_else():
    assert storage.sha256_json({"a": 1, "b": [1, 2]}) == storage.sha256_json({"b": [1, 2], "a": 1})
    assert storage.sha256_json({"a": [1, 2]}) != storage.sha256_json({"a": [2, 1]})
    assert storage.sha256_json({"a": 1}) != storage.sha256_json({"a": 1.0})
    with pytest.raises(ValueError):
        storage.sha256_json(float("nan"))


def test_writing_replaces_the_file_makes_folders_and_leaves_no_temporary(tmp_path):
    path = tmp_path / "deep" / "er" / "a.txt"
    storage.write_text(path, "old")
    storage.write_text(path, "né")
    assert path.read_bytes() == "né".encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~files._umask()


def test_a_full_disk_keeps_the_old_content_and_says_so_in_one_line(tmp_path, monkeypatch):
    path = storage.write_text(tmp_path / "a.txt", "old")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"a\.txt: cannot write, the disk is full; free some space") as caught:
        storage.write_text(path, "new")
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def _submit(home):
    backend = LocalBackend(profile=Local(kind="local"), home=home)
    backend.submit(backend.plan(JobSpec(name="m", run_id="m", command=("x" * 5000,), labels={"config-hash": "1"})))


WRITERS = {
    "write_bytes": lambda home: storage.write_bytes(home / "jobs" / "old", b"new" * 5000),
    "state of a job": lambda home: JobFolder(home / "jobs").write_state(State(attempt=1, pid=1, offset=0)),
    "folder of a job": _submit,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_a_write_that_failed_began_is_removed(writer, tmp_path):
    old = tmp_path / "jobs" / "old"
    old.parent.mkdir()
    old.write_text("old")
    with largest_file(10), pytest.raises((OSError, InfrastructureError), match="File too large"):
        WRITERS[writer](tmp_path)
    assert [path.name for path in old.parent.iterdir()] == ["old"]
    assert old.read_text() == "old"


def test_a_missing_file_is_named(tmp_path):
    for read in (storage.sha256_file, storage.read_bytes):
        with pytest.raises(StorageError, match=r"gone\.bin: cannot read"):
            read(tmp_path / "gone.bin")


@pytest.mark.parametrize(
    ("uri", "parts"), [("s3://b/some/key", ("b", "some/key")), ("s3://b", ("b", "")), ("s3://b/", ("b", ""))]
)
def test_addresses_split_into_bucket_and_key(uri, parts):
    assert storage.split_uri(uri) == parts


@pytest.mark.parametrize("uri", ["s3://", "/local/folder", "gs://bucket/x"])
def test_other_addresses_are_refused(uri):
    with pytest.raises(SpecError, match="must look like s3://bucket/prefix"):
        storage.split_uri(uri)


@pytest.fixture
def served(monkeypatch):
    """Objects by address, without a server; counts how often each was asked for."""
    objects: dict[str, bytes] = {}
    asked: list[str] = []

    def read(stored):
        asked.append(stored.uri)
        return objects[stored.uri]

    monkeypatch.setattr(storage.cached_objects, "read_listed", read)
    return objects, asked


def test_an_object_is_fetched_once_and_again_when_its_copy_is_damaged(served, tmp_path):
    objects, asked = served
    objects["s3://b/k"] = b"content"
    stored = storage.StoredObject(bucket="b", key="k", size=7, etag="e")
    assert [storage.read_cached(stored, tmp_path) for _ in range(2)] == [b"content"] * 2
    assert asked == ["s3://b/k"]
    copy = next(path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".sha256")
    copy.write_bytes(b"c0ntent")
    assert storage.read_cached(stored, tmp_path) == b"content"
    assert asked == ["s3://b/k"] * 2


def test_an_object_that_changed_is_fetched_again(served, tmp_path):
    objects, _ = served
    objects["s3://b/k"] = b"first"
    storage.read_cached(storage.StoredObject(bucket="b", key="k", size=5, etag="1"), tmp_path)
    objects["s3://b/k"] = b"other"
    assert storage.read_cached(storage.StoredObject(bucket="b", key="k", size=5, etag="2"), tmp_path) == b"other"


def test_a_server_that_ignores_the_condition_cannot_pass_other_content_for_what_was_listed(monkeypatch, tmp_path):
    monkeypatch.setattr(storage.objects, "_read", lambda *address, **conditions: (b"other", '"2"'))
    stored = storage.StoredObject(bucket="b", key="k", size=5, etag="1")
    with pytest.raises(IntegrityError, match="s3://b/k: it changed after it was listed; run the same command again"):
        storage.read_cached(stored, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_fewer_bytes_than_listed_are_refused_and_not_kept(served, tmp_path):
    objects, _ = served
    objects["s3://b/k"] = b"cut"
    with pytest.raises(IntegrityError, match="3 bytes where the listing says 7"):
        storage.read_cached(storage.StoredObject(bucket="b", key="k", size=7, etag="e"), tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_key_that_leaves_the_folder_is_refused(monkeypatch, tmp_path):
    evil = storage.StoredObject(bucket="b", key="home/runs/x/../../../evil", size=1, etag="e")
    monkeypatch.setattr(storage.objects, "list_objects", lambda uri: [evil])
    with pytest.raises(StorageError, match="leaves its folder"):
        storage.Mirror(home=tmp_path, uri="s3://b/home").restore(tmp_path / "runs" / "x")


def test_without_a_bucket_a_mirror_does_nothing_and_asks_nobody(tmp_path, monkeypatch):
    monkeypatch.delenv("GRACEFUL_STORAGE", raising=False)
    mirror = storage.Mirror.of(tmp_path)
    path = storage.write_text(tmp_path / "runs" / "x" / "report.json", "{}")
    mirror.save(path.parent)
    mirror.seal(path.parent)
    mirror.restore(path.parent)
    assert mirror.unseal(path.parent)
    assert not mirror.unseal(tmp_path / "targets" / "key")
    assert mirror.display_path(path) == str(path)
    mirror.delete(path)
    assert not path.exists()


@pytest.mark.parametrize("uri", ["gs://bucket/x", "/runs", "s3://"])
def test_an_address_that_is_no_bucket_names_the_variable(uri, tmp_path, monkeypatch):
    monkeypatch.setenv("GRACEFUL_STORAGE", uri)
    with pytest.raises(SpecError, match=rf"GRACEFUL_STORAGE={uri}: must look like s3://bucket/prefix"):
        storage.Mirror.of(tmp_path)


def test_a_server_that_never_answered_is_reported_at_once_and_one_that_did_is_waited_for(monkeypatch):
    waits: list[float] = []
    refused = EndpointConnectionError(endpoint_url="http://server")
    answers = iter([refused, "first", refused, refused, "second"])

    def ask():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(server, "PATIENCE", dataclasses.replace(server.PATIENCE, sleep=waits.append))
    server.reset()
    with pytest.raises(StorageError, match="s3://b/k: not reachable"):
        server.send("s3://b/k", ask)
    assert waits == []
    assert server.send("s3://b/k", ask) == "first"
    assert server.send("s3://b/k", ask) == "second"
    assert len(waits) == 2
    server.reset()


def test_a_deletion_that_the_bucket_refuses_is_an_error(monkeypatch):
    class Client:
        def delete_objects(self, **asked):
            return {"Errors": [{"Key": "runs/x/error.json", "Code": "AccessDenied"}]}

    monkeypatch.setattr(server, "client", Client)
    gone = storage.StoredObject(bucket="b", key="runs/x/error.json", size=1, etag="e")
    with pytest.raises(StorageError, match=r"s3://b/runs/x/error.json: not deleted \(AccessDenied\)"):
        storage.objects.remove([gone])
