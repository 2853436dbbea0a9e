"""Secrets on their way through real servers: a marker planted wherever people may write one is found nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from graceful.errors import RegistryError, StorageError
from graceful.lineage import connection
from graceful.storage import objects, server
from tests.support import mlflow_server, s3_server
from tests.support.webhook_receiver import receiving

pytestmark = pytest.mark.integration
MARKER = "mark3r-Secret"


def test_credentials_with_a_line_break_at_the_end_open_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server.serving():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, f"{os.environ[name]}\n")
        server.reset()
        server.client().create_bucket(Bucket="line-breaks")
        objects.write_object("s3://line-breaks/a", b"b")
        assert objects.read_object("s3://line-breaks/a") == b"b"


def test_a_session_token_that_no_header_can_hold_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text(
        f"[default]\naws_access_key_id = {MARKER}-1\naws_secret_access_key = {MARKER}-2\n"
        f"aws_session_token = {MARKER}-3\n  {MARKER}-4\n"
    )
    with s3_server.serving():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        server.reset()
        with pytest.raises(StorageError, match="hold a line break or another character") as refused:
            objects.read_object("s3://bucket/a")
    assert MARKER not in refused.value.message


def test_a_token_with_a_line_break_at_the_end_reaches_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", f"{MARKER}\n")
    with receiving(401) as receiver:
        place = connection.resolve(receiver.url.partition("/hooks")[0], tmp_path)
        with pytest.raises(RegistryError) as refused:
            connection.connect(place)
    assert {headers.get("Authorization") for headers, _ in receiver.came} == {f"Bearer {MARKER}"}
    assert MARKER not in refused.value.message


def revealing(*folders: Path) -> list[Path]:
    """Files that others may read and that hold the marker."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if path.stat().st_mode & 0o077 and MARKER.encode() in path.read_bytes()]


def test_a_refresh_and_what_people_do_after_it_show_no_secret(tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    spec = {
        "model": "digits",
        "name": "v1",
        "task": {"kind": "digits"},
        "train": {"num_workers": 0, "engine": {"kind": "torch"}, "epochs": 1, "batch_size": 16},
        "gate": {"constraints": [{"metric": "error_rate", "bound": 0.99, "against": "self"}]},
    }
    (work / "v1.yaml").write_text(yaml.safe_dump(spec))
    with receiving(500) as receiver, mlflow_server.server(tmp_path / "mlflow.db", tmp_path / "artifacts") as uri:
        secret_uri = uri.replace("://", f"://bob:{MARKER}%2F1@")
        environment = {
            **os.environ,
            "GRACEFUL_HOME": str(home),
            "GRACEFUL_WEBHOOK_SECRET": f"{MARKER}-2",
            "AWS_SECRET_ACCESS_KEY": f"{MARKER}-3\n",
            "MLFLOW_TRACKING_URI": secret_uri,
        }

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "graceful.cli", *words]
            return subprocess.run(
                command, env=environment, cwd=work, capture_output=True, text=True, timeout=600, check=False
            )

        sets = (f"registry.uri={secret_uri}", f"registry.webhook={receiver.url}{MARKER}")
        sets = (*sets, f"description=password={MARKER}")
        done = [run("refresh", "v1.yaml", *(word for value in sets for word in ("--set", value)), "-vv")]
        done.append(run("hold", "digits:v1", "--reason", "r", "-vv"))
        done.append(run("lineage", "digits"))
    assert [one.returncode for one in done] == [0, 2, 0], done[0].stderr[-2000:]  # a champion cannot be held
    assert "not delivered (answers 500)" in done[0].stderr
    for one in done:
        assert MARKER not in one.stdout + one.stderr
    assert revealing(home, work, tmp_path / "artifacts") == []
    assert MARKER.encode() not in (tmp_path / "mlflow.db").read_bytes()
    assert len(list((home / "outbox").glob("*.json"))) == 2
