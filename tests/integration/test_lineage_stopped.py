"""A writer whose process is stopped in the middle of a change and goes on after others had their turn."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from graceful.errors import RegistryError
from graceful.lineage import Store, lease, schema
from tests.support import mlflow_versions as versions

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),  # its own use of SQLAlchemy
]

WHO = {"reason": "because", "actor": "pytest"}

WRITER = """
import os, signal, sys
from pathlib import Path
from graceful.errors import GracefulError
from graceful.lineage import Store

uri, home, model, action, call, argument, lost = sys.argv[1:]
store = Store(uri, Path(home))
client = store.registry.client
real = getattr(client, call)

def stopped(*arguments):
    if argument in arguments:
        os.kill(os.getpid(), signal.SIGSTOP)
        setattr(client, call, real)
    answer = real(*arguments)
    if argument in arguments and lost == "lost":
        from mlflow.exceptions import MlflowException
        raise MlflowException("API request failed with exception: connection aborted")
    return answer

setattr(client, call, stopped)
who = {"reason": "because", "actor": "the stopped writer"}
try:
    if action == "promote":
        store.promote(model, 2, expected=1, **who)
    elif action == "rollback":
        store.rollback(model, 1, expected=2, **who)
    else:
        store.retire(model, 2, **who)
except GracefulError as e:
    sys.stderr.write(e.message)
    sys.exit(e.exit_code)
"""


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with versions.served(tmp_path_factory.mktemp("server")) as uri:
        yield uri


@pytest.fixture
def model() -> str:
    return f"stopped-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def store(uri: str, tmp_path: Path, model: str) -> Store:
    """v1 is champion; v2 and v3 have passed and were judged against it."""
    store = Store(uri, tmp_path / "home")
    first = store.register(versions.registration(store, tmp_path, "v1", model=model))
    store.promote(model, 1, expected=None, **WHO)
    for name in ("v2", "v3"):
        store.register(versions.registration(store, tmp_path, name, [first], model=model))
    return store


class Stopped:
    """A writer in a process of its own, on another machine as far as locks of files can tell.

    Args:
        store: The registry.
        folder: For its local state.
        action: promote, rollback or retire.
        call: Call of MLflow's client before which it is stopped.
        argument: One argument of that call.
        lost: Whether the answer to that call is lost.
    """

    def __init__(
        self, store: Store, folder: Path, model: str, action: str, *, call: str, argument: str, lost: bool = False
    ) -> None:
        self._store, self._model = store, model
        arguments = [store.registry.address.uri, str(folder), model, action, call, argument, "lost" if lost else ""]
        self._process = subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> Stopped:
        _, status = os.waitpid(self._process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "the writer ended before it came to that call"
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def lose_lease(self) -> None:
        """Take its lease over, as the next writer would after two minutes."""
        lease._take(self._store.registry, self._model, "next", 0.3)
        lease._give_back(self._store.registry, self._model, "next", expiring=False)

    def go_on(self) -> tuple[int, str]:
        """Wake it up; returns its exit code and what it said."""
        os.kill(self._process.pid, signal.SIGCONT)
        _, said = self._process.communicate(timeout=600)
        return self._process.returncode, said

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def told(store: Store, model: str) -> list[tuple[str, int | None, int, str]]:
    return [(event.kind, event.before, event.version, event.status) for event in store.history(model)]


def repaired(store: Store, model: str) -> list[str]:
    """What a repair finds, apart from the entry of the lease that was taken over."""
    return [item.what for item in store.repair(model) if not item.where.startswith(lease.PREFIX)]


@pytest.mark.parametrize(
    ("alias", "lost"),
    [("champion", False), ("champion", True), ("previous", False)],
    ids=["moved", "answer-lost", "previous"],
)
def test_promotion_that_wakes_up_after_another_one_is_taken_back(
    store: Store, model: str, tmp_path: Path, alias: str, lost: bool
) -> None:
    call = "set_registered_model_alias"
    with Stopped(store, tmp_path / "other", model, "promote", call=call, argument=alias, lost=lost) as writer:
        writer.lose_lease()
        store.promote(model, 3, expected=1, **WHO)
        code, said = writer.go_on()
    assert code == 4, said
    assert "the promotion of version 2 was interrupted for longer than its lease" in said
    assert "champion is version 3" in said
    assert store.registry.aliases(model) == {"champion": 3, "previous": 1}
    assert told(store, model) == [
        ("promotion", None, 1, "FINISHED"),
        ("promotion", 1, 2, "FAILED"),
        ("promotion", 1, 3, "FINISHED"),
    ]
    assert repaired(store, model) == []
    with pytest.raises(RegistryError, match="champion is version 3, not version 1"):
        store.promote(model, 2, expected=1, **WHO)


def test_promotion_that_wakes_up_after_its_lease_is_taken_back_though_nobody_moved_the_champion(
    store: Store, model: str, tmp_path: Path
) -> None:
    call = "set_registered_model_alias"
    with Stopped(store, tmp_path / "other", model, "promote", call=call, argument="champion") as writer:
        writer.lose_lease()
        code, said = writer.go_on()
    assert (code, "champion is version 1" in said) == (4, True), said
    assert store.registry.aliases(model) == {"champion": 1}
    assert store.promote(model, 2, expected=1, **WHO) is not None
    assert store.registry.aliases(model) == {"champion": 2, "previous": 1}
    assert told(store, model)[1:] == [("promotion", 1, 2, "FAILED"), ("promotion", 1, 2, "FINISHED")]


def test_rollback_that_wakes_up_after_a_promotion_is_taken_back(store: Store, model: str, tmp_path: Path) -> None:
    store.promote(model, 2, expected=1, **WHO)
    call = "set_registered_model_alias"
    with Stopped(store, tmp_path / "other", model, "rollback", call=call, argument="champion") as writer:
        writer.lose_lease()
        store.promote(model, 3, expected=2, **WHO)
        code, said = writer.go_on()
    assert code == 4, said
    assert store.registry.aliases(model) == {"champion": 3, "previous": 2}
    assert told(store, model)[2:] == [("rollback", 2, 1, "FAILED"), ("promotion", 2, 3, "FINISHED")]
    assert repaired(store, model) == []


def test_retirement_that_is_marked_after_the_lease_was_lost_is_taken_back(
    store: Store, model: str, tmp_path: Path
) -> None:
    call = "set_model_version_tag"
    with Stopped(store, tmp_path / "other", model, "retire", call=call, argument=schema.TAG_GATE) as writer:
        writer.lose_lease()
        store.promote(model, 2, expected=1, **WHO)
        code, said = writer.go_on()
    assert code == 4, said
    assert {item.version: (item.gate, item.aliases) for item in store.versions(model)} == {
        3: ("passed", ()),
        2: ("passed", ("champion",)),
        1: ("passed", ("previous",)),
    }
    assert repaired(store, model) == []


@pytest.mark.parametrize("remedy", ["repair", "repeat"])
def test_alias_that_a_dead_writer_moved_too_late_is_put_back_by_repair_and_by_repeating_it(
    store: Store, model: str, tmp_path: Path, remedy: str
) -> None:
    call = "set_registered_model_alias"
    with Stopped(store, tmp_path / "other", model, "promote", call=call, argument="champion") as writer:
        writer.lose_lease()
        store.promote(model, 3, expected=1, **WHO)
        store.registry.client.set_registered_model_alias(model, "champion", "2")  # what it does before it dies
        writer.kill()
    if remedy == "repair":
        store.repair(model)
    else:
        with pytest.raises(RegistryError, match="champion is version 3, not version 1"):
            store.promote(model, 2, expected=1, **WHO)
    assert store.registry.aliases(model) == {"champion": 3, "previous": 1}
    assert told(store, model)[1:3] == [("promotion", 1, 2, "FAILED"), ("promotion", 1, 3, "FINISHED")]
    assert repaired(store, model) == []
