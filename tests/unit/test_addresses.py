"""Addresses of buckets: what people write is read alike and refused alike everywhere, and changes no digest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graceful import addresses, spec, storage
from graceful.errors import SpecError
from graceful.launch import profile
from graceful.launch.kuberay.profile import Storage
from tests.support.launch import CLUSTER

GOOD = {
    "s3://bucket/photos": "s3://bucket/photos",
    "s3://bucket/photos/": "s3://bucket/photos/",
    "s3://bucket/two words/ärger@2x": "s3://bucket/two words/ärger@2x",
    "s3://My.Bucket_1/x": "s3://My.Bucket_1/x",
    "S3://bucket/Photos": "s3://bucket/Photos",
    "s3a://bucket/photos": "s3://bucket/photos",
    "S3N://bucket": "s3://bucket",
    " s3://bucket/photos\n": "s3://bucket/photos",
    "s3://bucket": "s3://bucket",
    "s3://bucket/": "s3://bucket/",
}
BAD = {
    "s3:/bucket/photos": r"\(write s3://bucket/photos\)",
    "s3a:bucket": r"\(write s3://bucket\)",
    "s3://": "the bucket is missing",
    "s3:///photos": "the bucket is missing",
    "s3://bob:secret@bucket/x": "credentials belong in AWS_ACCESS_KEY_ID",
    "s3://bucket:9000/x": "the server belongs in AWS_ENDPOINT_URL",
    "s3://two words/x": "a bucket's name has at most 255",
    "s3://bucket//photos": r"\(write s3://bucket/photos with single slashes\)",
    "s3://bucket/a/../b": r"neither \. nor \.\.",
    "s3://bucket/a\x00b": "cannot be printed",
    "s3://bucket/" + "k" * 1100: "1100 bytes, at most 1024",
}


def task(root: str) -> dict[str, Any]:
    return {"model": "a", "name": "v1", "task": {"kind": "image_folder", "root": root}}


@pytest.mark.parametrize(("written", "meant"), GOOD.items(), ids=repr)
def test_an_address_is_read_alike_wherever_it_is_written(
    written: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert addresses.is_remote(written)
    assert addresses.normalised(written) == meant
    path = tmp_path / "v1.yaml"
    path.write_text(json.dumps(task(written)))
    loaded = spec.load(path)
    assert getattr(loaded.task, "root", None) == meant
    assert loaded.dump() == spec.parse(task(meant)).dump()
    assert Storage(uri=written).uri == meant
    monkeypatch.setenv("GRACEFUL_STORAGE", written)
    assert storage.Mirror.of(tmp_path).uri == meant.rstrip("/")


@pytest.mark.parametrize(("written", "problem"), BAD.items(), ids=lambda text: repr(text)[:40])
def test_an_address_that_cannot_be_meant_is_refused_wherever_it_is_written(
    written: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = rf"must look like s3://bucket/prefix .*{problem}"
    with pytest.raises(SpecError, match=line):
        spec.parse(task(written))
    with pytest.raises(SpecError, match=rf"storage\.uri in profile: {line}"):
        profile.parse({**CLUSTER, "storage": {"uri": written}})
    if "\0" not in written:
        monkeypatch.setenv("GRACEFUL_STORAGE", written)
        with pytest.raises(SpecError, match=rf"GRACEFUL_STORAGE=.*: {line}"):
            storage.Mirror.of(tmp_path)


@pytest.mark.parametrize("root", ["gs://bucket/x", "https://bucket.s3.amazonaws.com/x", "abfs://c@a/x", "file:///x"])
def test_addresses_of_other_stores_are_refused_with_the_spec(root: str) -> None:
    with pytest.raises(SpecError, match=r"task\.root in .*: must be a local folder or s3://bucket/prefix, got "):
        spec.parse(task(root))


def test_a_key_that_a_listing_names_is_kept_as_it_is() -> None:
    for key in ("a//b", "../x", " space ", "trailing/", "\x01"):
        stored = storage.StoredObject(bucket="b", key=key, size=1, etag="e")
        assert storage.split_uri(stored.uri) == ("b", key)
