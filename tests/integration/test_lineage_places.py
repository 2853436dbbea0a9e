"""Registries that are not there, do not answer or refuse, and homes of any name: seconds and one line each."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from graceful.errors import RegistryError
from graceful.lineage import Store, connection
from tests.support import mlflow_versions as versions
from tests.support import postgres_server
from tests.support.mlflow_server import free_port

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),  # its own use of SQLAlchemy
]

LONGEST = 60.0
"""Seconds on a busy machine, the import of MLflow among them; MLflow itself would try for 115 s."""
REMEDY = "check that the database server runs and that host, port, user, password and database of its URI are right"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    reason = postgres_server.missing()
    if reason is not None:
        pytest.skip(reason)
    with postgres_server.server() as uri:
        yield uri


def refusal(uri: str, home: Path) -> str:
    started = time.monotonic()
    with pytest.raises(RegistryError) as raised:
        Store(uri, home).versions("glyphs")
    assert time.monotonic() - started < LONGEST
    assert "secret" not in raised.value.message
    assert "\n" not in raised.value.message
    return raised.value.message


def test_database_that_refuses_connections(tmp_path: Path) -> None:
    port = free_port()
    message = refusal(f"postgresql+psycopg2://me:secret@127.0.0.1:{port}/mlflow", tmp_path)
    assert message.endswith(f"127.0.0.1:{port}/mlflow: cannot connect: connection refused; {REMEDY}")


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg2"])
def test_registry_that_accepts_connections_and_never_answers(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PROBE_SECONDS", 2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(8)
        assert "no answer in time" in refusal(f"{scheme}://127.0.0.1:{mute.getsockname()[1]}/mlflow", tmp_path)


def test_host_whose_name_is_not_known(tmp_path: Path) -> None:
    for scheme in ("http", "postgresql+psycopg2"):
        assert "cannot connect: unknown host; check" in refusal(f"{scheme}://registry.invalid:5000/mlflow", tmp_path)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("mysql://me@127.0.0.1/x", "its database driver MySQLdb is not installed; run `pip install mysqlclient`"),
        (
            "postgresql://me@127.0.0.1/x",
            "psycopg is not installed; run `pip install psycopg`, or write postgresql+psycopg2",
        ),
        ("mysql+pymysql://me@127.0.0.1/x", "its database driver pymysql is not installed; run `pip install PyMySQL`"),
        ("postgresql+pg8000://me@127.0.0.1/x", "its database driver pg8000 is not installed; run `pip install pg8000`"),
    ],
)
def test_driver_that_is_not_installed_is_named_with_its_package(uri: str, words: str, tmp_path: Path) -> None:
    assert words in refusal(uri, tmp_path)


def test_database_server_that_refuses_says_what(postgres: str, tmp_path: Path) -> None:
    wrong = postgres.replace(":secret@", ":not-the-secret@")
    assert "cannot connect: authentication failed, the user or the password is wrong; " in refusal(wrong, tmp_path)
    missing = postgres.replace("/postgres", "/nothing")
    assert "cannot connect: its database nothing does not exist; create it; " in refusal(missing, tmp_path)


# --- homes of any name ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["what?", "C# projects", "a%20b", "naïve 'ü' \"x\""])
def test_home_of_any_name_keeps_registry_lock_and_artifacts_in_itself(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = tmp_path / name
    store = Store(None, home)
    v1 = store.register(versions.registration(store, tmp_path / "bundles", "v1"))
    store.promote("glyphs", v1.version, expected=None, reason="test", actor="pytest")
    again = Store(None, home)
    assert again.chain("glyphs") == [v1]
    assert (again.fetch(v1) / "model.safetensors").read_bytes() == b"glyphs-v1" * 100
    with sqlite3.connect(home / "mlflow.db") as database:
        assert database.execute("SELECT count(*) FROM model_versions").fetchone() == (1,)
    database.close()
    assert {"mlflow.db", "mlflow.db.lock", "artifacts", "versions"} <= {path.name for path in home.iterdir()}
    assert len([*home.glob("artifacts/**/model.safetensors")]) == 1
    assert {path.name for path in tmp_path.iterdir()} == {name, "bundles"}


OPEN = """
import sys
from pathlib import Path
from graceful.lineage import Store
Store(None, Path(sys.argv[1])).versions("glyphs")
"""


def test_a_new_home_may_be_opened_by_several_processes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = [sys.executable, "-c", OPEN, str(tmp_path / "home")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [(process.communicate(timeout=600)[1], process.returncode) for process in processes]
    assert [code for _, code in ends] == [0, 0], ends
