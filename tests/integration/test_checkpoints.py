"""Checkpoints in buckets, copied once on a machine and kept for versions with adapters; and a hub that is not there."""

from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from graceful.errors import DataError, IntegrityError
from graceful.models import bases, bundle
from graceful.models.checkpoint_folders import folder_of
from graceful.storage import objects
from graceful.storage.server import client
from tests.support import text_checkpoint
from tests.support.s3_server import environment, serving
from tests.unit.test_adapters import saved
from tests.unit.test_checkpoint_folders import REVISION, taken
from tests.unit.test_tasks_table import parquet, rows

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with serving():
        name = f"graceful-{uuid.uuid4().hex[:8]}"
        client().create_bucket(Bucket=name)
        yield name


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))


def uploaded(bucket: str, prefix: str, folder: Path) -> str:
    for path in folder.iterdir():
        objects.upload(path, f"s3://{bucket}/{prefix}/{path.name}")
    objects.write_object(f"s3://{bucket}/{prefix}/pytorch_model.bin", b"never read")
    return f"s3://{bucket}/{prefix}/"


TAKE = "import sys; from graceful.models.checkpoint_folders import folder_of; print(folder_of(sys.argv[1]))"


def test_processes_of_a_machine_share_one_copy(bucket: str, tmp_path: Path) -> None:
    local = text_checkpoint.save(tmp_path / "base")
    uri = uploaded(bucket, "shared", local)
    running = [subprocess.Popen([sys.executable, "-c", TAKE, uri], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    places = {process.communicate()[0].strip() for process in running}
    assert len(places) == 1
    place = Path(places.pop())
    assert sorted(path.name for path in place.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (place / "model.safetensors").read_bytes() == (local / "model.safetensors").read_bytes()
    before = place.stat().st_ino
    assert folder_of(uri) == place
    assert place.stat().st_ino == before
    uploaded(bucket, "shared", text_checkpoint.save(tmp_path / "other", seed=1))
    assert folder_of(uri) != place


def test_a_hub_that_cannot_be_reached_is_asked_only_for_what_is_missing(tmp_path: Path) -> None:
    place = text_checkpoint.save(tmp_path / "models--owner--model" / "snapshots" / REVISION)
    found, gone = taken(tmp_path, "owner/model", "owner/gone")
    assert found == str(place)
    assert gone.startswith(f"task.network.checkpoint: owner/gone at {REVISION[:12]} cannot be had (")
    assert gone.endswith("; check the network and HF_TOKEN, or name a folder or s3://bucket/prefix/")


def test_addresses_without_a_checkpoint_are_refused(bucket: str) -> None:
    with pytest.raises(DataError, match=rf"s3://{bucket}/nothing holds no safetensors; name the prefix"):
        folder_of(f"s3://{bucket}/nothing")


def test_a_version_opens_on_another_machine_from_the_copy_of_its_base(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = text_checkpoint.save(tmp_path / "base", hidden=64)
    parquet(tmp_path / "rows.parquet", rows(120))
    with environment({"GRACEFUL_STORAGE": f"s3://{bucket}/mirror"}):
        saved(tmp_path / "v1", base)
        expected = bundle.load(tmp_path / "v1")(["small red ball"]).logits
        needed = bundle.base_of(tmp_path / "v1")
        assert needed is not None
        bases.keep(needed)
        shutil.rmtree(base)
        monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "elsewhere"))
        assert torch.equal(bundle.load(tmp_path / "v1")(["small red ball"]).logits, expected)
        (needed.store / "model.safetensors").write_bytes(b"damaged")
        with pytest.raises((DataError, IntegrityError), match="base"):
            bundle.load(tmp_path / "v1")
