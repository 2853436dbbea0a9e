"""Buckets on a real S3 server: listing, caching, errors a user can act on, and a task that lives there."""

import io
import socket
import uuid
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from graceful import storage, tasks
from graceful.errors import DataError, IntegrityError, StorageError
from graceful.spec import ImageFolderTask, TableTask
from graceful.spec.table import Columns
from graceful.storage import Mirror, objects
from graceful.storage.server import client
from tests.support.s3_server import environment, serving
from tests.unit.test_tasks_table import parquet, rows

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server():
    """One server for all tests; stopped at the end."""
    with serving() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(server):
    name = f"graceful-{uuid.uuid4().hex[:8]}"
    client().create_bucket(Bucket=name)
    return name


def put(bucket, key, data):
    client().put_object(Bucket=bucket, Key=key, Body=data)


def picture(colour):
    file = io.BytesIO()
    Image.new("RGB", (12, 12), colour).save(file, format="PNG")
    return file.getvalue()


def test_listing_is_sorted_pages_and_stops_at_the_prefix(bucket):
    for number in range(12):
        put(bucket, f"data/{number:02d}.bin", b"x" * number)
    put(bucket, "data-of-others/1.bin", b"x")
    found = storage.list_objects(f"s3://{bucket}/data")
    assert [stored.key for stored in found] == [f"data/{number:02d}.bin" for number in range(12)]
    assert [stored.size for stored in found] == list(range(12))
    assert len(storage.list_objects(f"s3://{bucket}")) == 13


def test_errors_name_the_object_and_the_remedy_in_one_line(bucket):
    with pytest.raises(StorageError, match=rf"s3://{bucket}/gone: no such object; check the key") as caught:
        storage.read_object(f"s3://{bucket}/gone")
    assert "\n" not in str(caught.value)
    with pytest.raises(StorageError, match="no such bucket"):
        storage.list_objects(f"s3://{bucket}-not-there/x")


def test_a_wrong_key_and_a_dead_server_are_told_apart(bucket, server):
    with (
        environment({"AWS_SECRET_ACCESS_KEY": "wr0ng-s3cret"}),
        pytest.raises(StorageError, match=r"wrong secret key|access denied") as refused,
    ):
        storage.list_objects(f"s3://{bucket}/x")
    assert "wr0ng-s3cret" not in str(refused.value)
    with (
        environment({"AWS_ACCESS_KEY_ID": "nobody"}),
        pytest.raises(StorageError, match=r"unknown access key|access denied|check the address and the credentials"),
    ):
        storage.list_objects(f"s3://{bucket}/x")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with (
        environment({"AWS_ENDPOINT_URL": dead, "AWS_MAX_ATTEMPTS": "1"}),
        pytest.raises(StorageError, match="not reachable") as gone,
    ):
        storage.list_objects(f"s3://{bucket}/x")
    assert "AWS_ENDPOINT_URL" in str(gone.value)


@pytest.fixture
def images(bucket):
    for label, colour in (("ant", (255, 0, 0)), ("bee", (0, 0, 255))):
        for number in range(30):
            put(bucket, f"insects/{label}/{number:02d}.png", picture(colour))
    put(bucket, "insects/ant/.hidden.png", b"no image")
    put(bucket, "insects/ant/notes.txt", b"no image")
    return f"s3://{bucket}/insects"


def test_a_task_in_a_bucket_reads_like_one_on_disk(images, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))
    remote = tasks.build(ImageFolderTask(root=images, size=8))
    Mirror(home=tmp_path, uri=f"s3://{bucket}").restore(tmp_path / "insects")
    local = tasks.build(ImageFolderTask(root=str(tmp_path / "insects"), size=8))
    there, here = remote.samples("train"), local.samples("train")
    assert remote.classes == ("ant", "bee")
    assert np.array_equal(there.ids, here.ids)
    positions = np.asarray([0, len(there) - 1])
    assert remote.transform(there.read(positions), None).equal(local.transform(here.read(positions), None))
    put(bucket, f"insects/{there.ids[0]}", picture((1, 2, 3)))
    assert tasks.build(ImageFolderTask(root=images, size=8)).samples("train").digest != there.digest


def test_prefixes_are_told_apart_as_folders_are(images, bucket, monkeypatch):
    for split in ("Train", "val", "TEST"):
        for label in ("cafe\u0301", "dog"):
            put(bucket, f"split/{split}/{label}/1.png", picture((9, 9, 9)))
    put(bucket, "split/__MACOSX/Train/._1.png", b"x")
    put(bucket, "split/Train/dog/a.heic", b"x")
    task = tasks.build(ImageFolderTask(root=f"s3://{bucket}/split", size=8))
    assert task.classes == ("caf\u00e9", "dog")
    assert task.samples("test").ids.tolist() == ["TEST/cafe\u0301/1.png", "TEST/dog/1.png"]
    assert task.notes == (f"s3://{bucket}/split: 1 file passed over: 1 .heic",)
    put(bucket, "split/Train/caf\u00e9/1.png", picture((9, 9, 9)))
    with pytest.raises(DataError, match="look the same"):
        tasks.build(ImageFolderTask(root=f"s3://{bucket}/split", size=8)).samples("train")
    listed = storage.list_objects(images)
    twice = replace(listed[0], key="insects/ant//01.png")  # some servers keep no such keys
    monkeypatch.setattr(storage, "list_objects", lambda uri: [*listed, twice])
    with pytest.raises(DataError, match="differs only in slashes"):
        tasks.build(ImageFolderTask(root=images, size=8)).samples("train")


def test_a_corrupt_object_is_named(images, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path))
    put(bucket, "insects/bee/00.png", b"not an image")
    task = tasks.build(ImageFolderTask(root=images, size=8))
    opened = [task.samples(split) for split in ("train", "validation", "constraint", "test")]
    samples = next(part for part in opened if "bee/00.png" in part.ids)
    with pytest.raises(DataError, match=rf"s3://{bucket}/insects/bee/00\.png: not a readable image"):
        samples.read(np.flatnonzero(samples.ids == "bee/00.png"))


def test_an_object_overwritten_after_it_was_listed_is_refused_and_does_not_poison_the_cache(images, bucket, tmp_path):
    cache = tmp_path / "cache"
    stored = next(one for one in storage.list_objects(images) if one.key.endswith("ant/03.png"))
    other = picture((0, 255, 0))
    assert len(other) == stored.size
    put(bucket, stored.key, other)
    with pytest.raises(
        IntegrityError, match=rf"s3://{bucket}/insects/ant/03\.png: it changed after it was listed; run"
    ):
        storage.read_cached(stored, cache)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    again = next(one for one in storage.list_objects(images) if one.key.endswith("ant/03.png"))
    assert storage.read_cached(again, cache) == other
    with pytest.raises(IntegrityError, match="it changed after it was listed"):
        storage.read_cached(stored, cache)


def test_a_large_object_that_is_replaced_while_it_is_copied_arrives_as_one_of_both(bucket, tmp_path, monkeypatch):
    size = objects.server.PART + 1000
    uri, read = f"s3://{bucket}/large.bin", objects.server.client().get_object
    objects.write_object(uri, b"a" * size)

    def replaced(**asked):
        answer = read(**asked)
        monkeypatch.setattr(objects.server.client(), "get_object", read)
        objects.write_object(uri, b"b" * size)
        return answer

    monkeypatch.setattr(objects.server.client(), "get_object", replaced)
    assert objects.fetch(uri, tmp_path / "large.bin")
    assert (tmp_path / "large.bin").read_bytes() == b"b" * size
    assert [path.name for path in tmp_path.iterdir()] == ["large.bin"]


def test_a_disk_that_fills_up_is_told_from_a_network_that_breaks_and_leaves_no_part(bucket, tmp_path, monkeypatch):
    objects.write_object(f"s3://{bucket}/small", b"x" * 1000)
    objects.write_object(f"s3://{bucket}/large", b"x" * (objects.server.PART + 1000))

    def full(path):
        return objects._Part(io.FileIO("/dev/full", "wb"))

    monkeypatch.setattr(objects, "_open_part", full)
    for name in ("small", "large"):
        with pytest.raises(StorageError, match="the disk is full; free some space"):
            objects.fetch(f"s3://{bucket}/{name}", tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_table_in_a_bucket_is_the_table_on_disk(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))
    table = rows()
    for number in range(2):
        path = parquet(tmp_path / f"{number}.parquet", table[120 * number : 120 * (number + 1)])
        put(bucket, f"rows/{number}.parquet", path.read_bytes())
    columns = Columns(features=("weight", "height"), id="id")
    there = tasks.build(TableTask(files=(f"s3://{bucket}/rows/*.parquet",), columns=columns)).samples("test")
    here = tasks.build(TableTask(files=(str(tmp_path / "*.parquet"),), columns=columns)).samples("test")
    assert there.digest == here.digest
    with pytest.raises(DataError, match=rf"s3://{bucket}/rows/none\*.parquet names no object"):
        tasks.build(TableTask(files=(f"s3://{bucket}/rows/none*.parquet",), columns=columns)).samples("test")
    more = [
        {**row, "id": f"more-{row['id']}", "label": row["label"] if index != 130 else None}
        for index, row in enumerate(table)
    ]
    path = parquet(tmp_path / "bad.parquet", more)
    put(bucket, "rows/2.parquet", path.read_bytes())
    with pytest.raises(DataError, match=rf"s3://{bucket}/rows/2.parquet, row 130: no value in one of weight"):
        tasks.build(TableTask(files=(f"s3://{bucket}/rows/*",), columns=columns)).samples("test")
