"""The registry behind a real MLflow server: lost answers, unreachable servers, serving without pickle."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from graceful import patience
from graceful.environment import RUN_SPEC_VARIABLE
from graceful.errors import RegistryError
from graceful.lineage import Store, connection, lease, outages
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
    with versions.served(tmp_path_factory.mktemp("server")) as uri:
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
    assert time.monotonic() - started < 30
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
        assert 2 <= time.monotonic() - started < 30, "mlflow itself would try for minutes"


def test_server_that_dies_later_is_one_line_too(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr(outages, "PATIENCE", dataclasses.replace(outages.PATIENCE, seconds=0.0))
    with mlflow_server.LossyProxy(uri) as proxy:
        store = Store(proxy.uri, tmp_path)
        assert store.versions("nobody") == []
    with pytest.raises(
        RegistryError, match=r"cannot read the chain of glyphs: connection refused; check that the server runs"
    ):
        store.chain("glyphs")


@pytest.mark.usefixtures("one_request_retry")
def test_a_job_rides_out_an_outage_at_connecting_and_at_registration(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is away when the job connects, and each time after it has answered a write."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv(RUN_SPEC_VARIABLE, "spec.json")
    waits: list[str] = []
    monkeypatch.setattr(patience, "report_waiting", waits.append)
    port = mlflow_server.free_port()
    proxies: list[mlflow_server.LossyProxy] = []

    def listen(_: float) -> None:  # in place of the pause before the next try
        if not proxies:
            proxies.append(mlflow_server.LossyProxy(uri, WRITES, listens_on=port).__enter__())

    monkeypatch.setattr(outages, "PATIENCE", dataclasses.replace(outages.PATIENCE, sleep=listen))
    store = Store(f"http://127.0.0.1:{port}", tmp_path / "home")
    assert store.versions("patient") == []
    waited = len(waits)
    assert waited == 2
    assert waits[0].endswith("does not answer; waiting up to 180 s")
    assert waits[1] == ""
    proxies.pop().__exit__()
    v1 = store.register(versions.registration(store, tmp_path, "v1", model="patient"))
    assert len(waits) > waited
    assert [(line.name, line.model_id) for line in store.versions("patient")] == [("v1", v1.model_id)]
    for proxy in proxies:
        proxy.__exit__()


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
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(name) for name in wanted]


# --- one writer at a time, wherever the writers run -------------------------------------------------------------------


def machines(uri: str, tmp_path: Path, count: int) -> list[Store]:
    """Writers that share a server and no files."""
    return [Store(uri, tmp_path / f"machine{number}") for number in range(count)]


def locks(store: Store, model: str) -> list[str]:
    """Names of the leases of a model, held ones and those of the dead."""
    entries = store.registry.client.search_registered_models(f"name LIKE '{lease.PREFIX}{model}%'")
    return [entry.name for entry in entries]


def test_writers_of_different_machines_take_turns(uri: str, tmp_path: Path) -> None:
    inside: list[str] = []
    overlaps: list[str] = []

    def work(store: Store) -> None:
        for _ in range(3):
            with lease.writer(store.registry, "turns") as hold:
                inside.append(store.registry.home.name)
                if len(inside) > 1:
                    overlaps.append(",".join(inside))
                store.versions("nobody")  # some time on the server
                hold.check()
                inside.remove(store.registry.home.name)

    stores = machines(uri, tmp_path, 4)
    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []
    assert locks(stores[0], "turns") == []


def test_lease_of_a_dead_writer_is_taken_over_by_one(uri: str, tmp_path: Path) -> None:
    stores = machines(uri, tmp_path, 4)
    assert lease._created(stores[0].registry, "dead", "token-of-the-dead")
    order: list[str] = []

    def work(store: Store) -> None:
        with lease.writer(store.registry, "dead", lease_seconds=1.0):
            order.append(store.registry.home.name)

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(order) == ["machine0", "machine1", "machine2", "machine3"]
    # one that was slower than its own lease leaves an entry too
    assert f"{lease.PREFIX}dead.token-of-the-dead" in locks(stores[0], "dead")
    lease._give_back(stores[0].registry, "dead", "token-of-the-dead", expiring=True)  # the dead wakes up
    with lease.writer(stores[1].registry, "dead"):
        lease._evict(stores[2].registry, "dead", "token-of-the-dead")  # one more comes too late to take it over
        assert lease._holder(stores[0].registry, "dead") not in ("", "token-of-the-dead")


def test_a_model_that_has_the_name_of_a_lease_is_named_and_left(uri: str, tmp_path: Path) -> None:
    (store,) = machines(uri, tmp_path, 1)
    name = f"{lease.PREFIX}taken"
    store.registry.client.create_registered_model(name)
    with (
        pytest.raises(RegistryError, match=f"registered model {name}: is not a lock of graceful, .* that taken needs"),
        lease.writer(store.registry, "taken", lease_seconds=0.1),
    ):
        raise AssertionError("the name was given out")
    assert store.registry.client.get_registered_model(name).name == name


def test_a_request_repeated_after_its_answer_was_lost_takes_no_lease_from_the_next(uri: str, tmp_path: Path) -> None:
    first, second = (store.registry for store in machines(uri, tmp_path, 2))
    assert lease._created(first, "twice", "one")
    assert lease._created(first, "twice", "one"), "the first answer was lost"
    assert not lease._created(second, "twice", "two")
    lease._evict(first, "twice", "one")
    assert lease._created(second, "twice", "two")
    lease._evict(first, "twice", "one")  # the same request again
    assert lease._holder(first, "twice") == "two"
    lease._give_back(second, "twice", "two", expiring=False)
    lease._give_back(first, "twice", "one", expiring=False)
    assert lease._holder(first, "twice") == ""


def test_writer_that_slept_longer_than_its_lease_moves_nothing(uri: str, tmp_path: Path) -> None:
    (store,) = machines(uri, tmp_path, 1)
    with lease.writer(store.registry, "slow") as hold:
        hold.until = time.monotonic() - 1
        assert hold.expiring
        with pytest.raises(RegistryError, match="took longer than the lease of 120 s"):
            hold.check()
        with pytest.raises(RegistryError, match="took longer than the lease"):
            hold.extend()
        hold.until = time.monotonic() + 20  # less than a quarter of the lease
        hold.extend()
        assert hold.until > time.monotonic() + 20


def test_promotions_of_different_machines_at_once_move_the_champion_once(uri: str, tmp_path: Path) -> None:
    stores = machines(uri, tmp_path, 3)
    first = stores[0].register(versions.registration(stores[0], tmp_path, "v0", model="race"))
    stores[0].promote("race", first.version, expected=None, reason="first", actor="pytest")
    rivals = [
        store.register(versions.registration(store, tmp_path, f"v{number}", [first], model="race"))
        for number, store in enumerate(stores, start=1)
    ]
    outcomes: list[str] = []

    def move(store: Store, version: int) -> None:
        try:
            store.promote("race", version, expected=1, reason="race", actor="pytest")
            outcomes.append("moved")
        except RegistryError as e:
            outcomes.append("refused" if "expected" in e.facts else e.message)

    threads = [
        threading.Thread(target=move, args=(store, rival.version)) for store, rival in zip(stores, rivals, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["moved", "refused", "refused"]
    first_move, second_move = stores[0].history("race")
    assert (first_move.before, first_move.version, second_move.before) == (None, 1, 1)
    assert stores[0].registry.aliases("race") == {"champion": second_move.version, "previous": 1}
