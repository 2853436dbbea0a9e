"""The registry behind a real MLflow server: lost answers, unreachable servers, serving without pickle."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from graceful.errors import RegistryError
from graceful.lineage import Store, connection
from tests.support import mlflow_server
from tests.support import mlflow_versions as versions
from tests.support.mlflow_versions import add

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),  # its own use of SQLAlchemy
]

WRITES = (
    "experiments/create", "runs/create", "logged-models", "registered-models/create", "model-versions/create",
    "registered-models/alias", "runs/outputs", "runs/log-inputs", "runs/log-batch", "runs/update", "runs/set-tag",
)  # fmt: skip


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    assert versions.local_store(folder).versions("none") == []  # the schema, before the server opens it
    (folder / "served").mkdir()
    with mlflow_server.server(folder / "mlflow.db", folder / "served") as uri:
        yield uri


@pytest.fixture
def one_request_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")


def test_chain_of_three_over_http(uri: str, tmp_path: Path) -> None:
    store = Store(uri, tmp_path / "home")
    v1 = add(store, tmp_path, "v1", [])
    v2 = add(store, tmp_path, "v2", [v1])
    v3 = add(store, tmp_path, "v3", [v2, v1])
    assert store.chain("glyphs") == [v3, v2, v1]
    assert (store.fetch(v2) / "model.safetensors").read_bytes() == b"glyphs-v2" * 100
    assert store.registry.aliases("glyphs") == {"champion": 3, "previous": 2}


@pytest.mark.usefixtures("one_request_retry")
def test_every_answer_lost_once_leaves_one_of_everything(uri: str, tmp_path: Path) -> None:
    with mlflow_server.LossyProxy(uri, WRITES) as proxy:
        store = Store(proxy.uri, tmp_path / "home")
        item = versions.registration(store, tmp_path, "v1", model="lossy")
        v1 = store.register(item)
        store.promote("lossy", v1.version, expected=None, reason="test", actor="pytest")
        v2 = store.register(versions.registration(store, tmp_path, "v2", [v1], model="lossy"))
    lost = {end for end, count in proxy.lost.items() if count}
    assert lost == set(WRITES)
    direct = Store(uri, tmp_path / "home")
    assert [(line.name, line.model_id) for line in direct.versions("lossy")] == [
        ("v2", v2.model_id),
        ("v1", v1.model_id),
    ]
    assert [record.model_id for record in direct.chain("lossy")] == [v1.model_id]
    assert direct.record(v2.model_id) == v2
    experiment = direct.registry.experiment("lossy")
    assert len(direct.registry.client.search_logged_models([experiment])) == 2
    runs = direct.registry.client.search_runs([experiment])
    assert sorted(run.info.run_name for run in runs) == ["lossy-lineage", "lossy-v1", "lossy-v2", "promote-lossy-1"]
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_server_that_refuses_connections_fails_at_once_in_one_line(tmp_path: Path) -> None:
    uri = f"http://me:secret@127.0.0.1:{mlflow_server.free_port()}"
    started = time.monotonic()
    with pytest.raises(RegistryError) as raised:
        Store(uri, tmp_path).chain("glyphs")
    assert time.monotonic() - started < 15
    message = raised.value.message
    assert message == (
        f"registry {uri.replace('me:secret@', '')}: cannot connect: connection refused; check that the server runs and"
        " that its URI and credentials are right"
    )
    assert "secret" not in repr(raised.value.__cause__) + message


def test_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert connection.PROBE_SECONDS <= 12
    monkeypatch.setattr(connection, "PROBE_SECONDS", 2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(8)
        started = time.monotonic()
        with pytest.raises(RegistryError, match=r"cannot connect: no answer in time; check"):
            Store(f"http://127.0.0.1:{mute.getsockname()[1]}", tmp_path).chain("glyphs")
        assert 2 <= time.monotonic() - started < 5


def test_server_that_dies_later_is_one_line_too(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with mlflow_server.LossyProxy(uri, ()) as proxy:
        store = Store(proxy.uri, tmp_path)
        assert store.versions("nobody") == []
    with pytest.raises(
        RegistryError, match=r"cannot read the chain of glyphs: connection refused; check that the server runs"
    ):
        store.chain("glyphs")


def test_lock_is_waited_for_and_then_given_up(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "lock"
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with connection.exclusive(path):
            held.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(30)
        with (
            pytest.raises(RegistryError, match=r"another process is promoting since 0\.2 s"),
            connection.exclusive(path, seconds=0.2),
        ):
            raise AssertionError("the lock was given out twice")
    finally:
        release.set()
        holder.join()
    with connection.exclusive(path, seconds=0.2):
        assert path.exists()


SERVE = """
import os, sys
import numpy as np
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
from graceful.storage import sha256_json
model = mlflow.pyfunc.load_model("models:/digits@champion")
answer = model.predict(np.load(sys.argv[2]))
assert answer["probability"].shape == (5, 8), answer["probability"].shape
assert np.allclose(answer["probability"].sum(axis=1), 1, atol=1e-5)
sys.stdout.write(" ".join(answer["label"]))
"""


def test_champion_is_served_without_pickle(uri: str, tmp_path: Path) -> None:
    import numpy as np

    from graceful import spec as specs
    from graceful import tasks
    from graceful.models import bundle

    resolved = specs.parse(
        {"model": "digits", "name": "v1", "task": {"kind": "digits", "classes": 8}, "kind": "refresh"}
    )
    task = tasks.build(resolved.task)
    store = Store(uri, tmp_path / "home")
    item = versions.registration(store, tmp_path, "v1", model="digits")
    folder = tmp_path / "bundle"
    classes = task.classes
    digest = bundle.save(folder, network=task.network(classes), spec=resolved, classes=classes)
    record = store.register(versions.changed(item, bundle=folder, digest=digest))
    store.promote("digits", record.version, expected=None, reason="test", actor="pytest")
    fetched = bundle.load(store.fetch(record), expected_digest=record.digest, model_id=record.model_id)
    items = task.samples("test").read(np.arange(5))
    np.save(tmp_path / "items.npy", items)
    wanted = [classes[index] for index in fetched(items).logits.argmax(dim=1)]
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    command = [sys.executable, "-c", SERVE, uri, str(tmp_path / "items.npy")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(name) for name in wanted]
