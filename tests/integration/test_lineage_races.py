"""Many writers at the same rows at the same moment, on real databases: none of them fails, and one of them wins."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest

from graceful.errors import RegistryError
from graceful.lineage import Store, lease, registration
from graceful.lineage.registry import Registry
from tests.support import mlflow_server, postgres_server
from tests.support import mlflow_versions as versions

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),  # its own use of SQLAlchemy
    # of a row that another writer deleted first
    pytest.mark.filterwarnings("ignore:DELETE statement on table.*expected to delete:sqlalchemy.exc.SAWarning"),
]

WRITERS = 8
ROUNDS = 4


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "server"])
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp(request.param)
    uri = None
    with ExitStack() as stack:
        if request.param == "postgresql":
            reason = postgres_server.missing()
            if reason is not None:
                pytest.skip(reason)
            uri = stack.enter_context(postgres_server.server())
        elif request.param == "server":
            assert versions.local_store(folder).versions("none") == []  # the schema, before the server opens it
            (folder / "served").mkdir()
            uri = stack.enter_context(mlflow_server.server(folder / "mlflow.db", folder / "served"))
        else:
            uri = f"sqlite:///{folder / 'mlflow.db'}"
        opened = Store(uri, folder).registry
        opened.client.create_experiment("races")
        yield opened


def dead_lease(registry: Registry) -> str:
    name = fresh()
    assert lease._created(registry, name, "token-of-the-dead")
    return name


def model(registry: Registry) -> str:
    return str(registry.client.create_registered_model(fresh()).name)


def version(registry: Registry) -> str:
    name = model(registry)
    registry.client.create_model_version(name, source="s3://nowhere/model", await_creation_for=0)
    return name


def run(registry: Registry) -> str:
    experiment = registry.client.get_experiment_by_name("races").experiment_id
    return str(registry.client.create_run(experiment).info.run_id)


def fresh(_: Registry | None = None) -> str:
    return f"m{uuid.uuid4().hex}"


def log_parameter(registry: Registry, key: str) -> None:
    from mlflow.entities import Param

    registry.client.log_batch(key, params=[Param("width", "8")])


Prepare = Callable[[Registry], str]
Write = Callable[[Registry, str], Any]
WRITES: dict[str, tuple[Prepare, Write]] = {
    "take over a lease": (dead_lease, lambda registry, key: lease._evict(registry, key, "token-of-the-dead")),
    "make an experiment": (fresh, lambda registry, key: Registry(registry.address.uri, registry.home).experiment(key)),
    "make a model": (fresh, registration._family),
    "tag a model": (model, lambda registry, key: registry.client.set_registered_model_tag(key, "beat", "1")),
    "describe a model": (model, lambda registry, key: registry.client.update_registered_model(key, "text")),
    "set an alias": (version, lambda registry, key: registry.client.set_registered_model_alias(key, "champion", "1")),
    "tag a version": (version, lambda registry, key: registry.client.set_model_version_tag(key, "1", "gate", "held")),
    "delete a duplicate": (
        version,
        lambda registry, key: registry.point(registry.client.delete_model_version, key, "1"),
    ),
    "tag a run": (run, lambda registry, key: registry.client.set_tag(key, "gate", "held")),
    "log a parameter": (run, log_parameter),
    "delete a run": (run, lambda registry, key: registry.client.delete_run(key)),
}


@pytest.mark.parametrize("what", WRITES)
def test_writers_of_the_same_row_at_the_same_moment_all_go_on(registry: Registry, what: str) -> None:
    prepare, write = WRITES[what]
    failures: list[str] = []

    def work(key: str, start: threading.Barrier) -> None:
        start.wait(60)
        try:
            write(registry, key)
        except Exception as e:  # noqa: BLE001  # a thread must not swallow what it found
            failures.append(f"{type(e).__name__}: {e}")

    for _ in range(ROUNDS):
        key, start = prepare(registry), threading.Barrier(WRITERS)
        threads = [threading.Thread(target=work, args=(key, start)) for _ in range(WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_lease_whose_writer_died_goes_from_one_waiting_writer_to_the_next(registry: Registry) -> None:
    """Each round leaves a lease of the dead; every waiting writer gets its turn, and no two at once."""
    overlaps: list[str] = []
    failures: list[str] = []
    turns: list[str] = []

    def work(name: str) -> None:
        token = uuid.uuid4().hex
        try:
            lease._take(registry, name, token, 0.3)
            turns.append(token)
            if lease._holder(registry, name) != token:
                overlaps.append(token)
            lease._give_back(registry, name, token, expiring=False)
        except Exception as e:  # noqa: BLE001  # a thread must not swallow what it found
            failures.append(f"{type(e).__name__}: {e}")

    rounds, waiting = 3, 4
    for _ in range(rounds):
        name = dead_lease(registry)
        threads = [threading.Thread(target=work, args=(name,)) for _ in range(waiting)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert lease.leftovers(registry, name) == [f"{lease.PREFIX}{name}.token-of-the-dead"]
    assert (failures, overlaps, len(turns)) == ([], [], rounds * waiting)


def test_a_lease_that_is_read_while_it_is_renamed_is_nobodys_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow reads an entry and its tags one after the other; the moment between them is injected here."""
    monkeypatch.setattr(lease, "LOOK_PAUSE", 0.0)
    bare = SimpleNamespace(tags={}, latest_versions=[])
    held = SimpleNamespace(tags={lease.TAG_TOKEN: "t1", lease.TAG_BEAT: "7"}, latest_versions=[])

    def reading(*entries: object) -> Registry:
        coming = iter(entries)
        client = SimpleNamespace(get_registered_model=lambda name: None)
        return cast(Registry, SimpleNamespace(client=client, point=lambda call, *rest: next(coming)))

    assert lease._holder_and_beat(reading(bare, held), "m") == ("t1", "7")
    assert lease._holder_and_beat(reading(bare, None), "m") == ("", "")
    with pytest.raises(RegistryError, match="is not a lock of graceful"):
        lease._holder_and_beat(reading(*[bare] * lease.LOOKS), "m")
