"""Programs on clusters keep copies of what they print, whatever the bucket does."""

from __future__ import annotations

import sys

import pytest

from graceful.errors import EXIT_USAGE, StorageError
from graceful.programs.housekeeping import log_archive
from graceful.storage import objects
from graceful.storage.objects import StoredObject


class Bucket:
    """Objects by address; writing fails while `down`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.objects: dict[str, str] = {}
        self.down = False
        monkeypatch.setattr(objects, "list_objects", self._list)
        monkeypatch.setattr(objects, "write_at_once", self._write)
        monkeypatch.setattr(objects, "read_object", lambda uri: self.objects[uri].encode())

    def _list(self, uri: str) -> list[StoredObject]:
        if self.down:
            raise StorageError("down")
        names = (name for name in self.objects if name.startswith(f"{uri}/"))
        return [StoredObject(bucket="b", key=name.removeprefix("s3://b/"), size=1, etag="e") for name in names]

    def _write(self, uri: str, data: bytes) -> bool:
        if not self.down:
            self.objects[uri] = data.decode()
        return not self.down


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    return Bucket(monkeypatch)


def test_each_start_of_a_run_has_its_log_with_what_was_printed_before_and_the_end(bucket: Bucket) -> None:
    for number in (1, 2):
        with log_archive.kept() as archive:
            sys.stderr.write("early\n")
            archive.begin("s3://b/p", name="m-v1")
            sys.stdout.write(f"start {number}\n")
            sys.stderr.write("graceful: broken\n")
    assert bucket.objects == {
        f"s3://b/p/logs/m-v1/attempt-{number}.log": f"early\nstart {number}\ngraceful: broken\n" for number in (1, 2)
    }


def test_a_bucket_that_is_down_stops_nothing_and_the_last_copy_has_everything(bucket: Bucket) -> None:
    with log_archive.kept() as archive:
        archive.begin("s3://b/p", name="m-v1")
        bucket.down = True
        sys.stdout.write("one\n")
        archive._copy()
        bucket.down = False
        sys.stdout.write("two\n")
    assert bucket.objects == {"s3://b/p/logs/m-v1/attempt-1.log": "one\ntwo\n"}
    bucket.down = True
    with log_archive.kept() as archive:
        archive.begin("s3://b/p", name="m-v1")
        sys.stdout.write("three\n")
    with log_archive.kept() as archive:
        archive.begin(None, name="m-v1")
    assert len(bucket.objects) == 1


def test_of_a_long_log_the_end_is_kept(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_archive, "LARGEST", 30)
    with log_archive.kept() as archive:
        archive.begin("s3://b/p", name="m-v1")
        for number in range(100):
            sys.stdout.write(f"line {number}\n")
    assert bucket.objects["s3://b/p/logs/m-v1/attempt-1.log"] == "line 97\nline 98\nline 99\n"


def test_a_copy_is_printed_and_an_attempt_that_is_not_there_is_named(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.objects = {f"s3://b/p/logs/m-v1/attempt-{number}.log": f"log {number}\n" for number in (1, 3)}
    assert log_archive.main(["s3://b/p/", "m-v1", "3"]) == 0
    assert capsys.readouterr().out == "log 3\n"
    assert log_archive.main(["s3://b/p", "m-v1", "2"]) == EXIT_USAGE
    assert capsys.readouterr().err.endswith("no log of attempt 2 in s3://b/p/logs/m-v1; there are those of 1, 3\n")
    assert log_archive.main(["s3://b/p", "m-v2", "1"]) == EXIT_USAGE
    assert "there is none of this run" in capsys.readouterr().err
