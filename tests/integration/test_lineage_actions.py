"""What people do to versions, on a real sqlite registry: promote, roll back, hold, retire, and the history of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from graceful.errors import IntegrityError, RegistryError, SpecError
from graceful.lineage import LineageRecord, Store, schema
from graceful.lineage.events import Event
from graceful.programs.runs.run import Run
from tests.support import mlflow_versions as versions
from tests.support.mlflow_versions import add
from tests.support.webhook_receiver import receiving

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),  # its own use of SQLAlchemy
]

WHO = {"reason": "because", "actor": "pytest"}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[LineageRecord]]:
    folder = tmp_path_factory.mktemp("filled")
    records = versions.three_versions(folder / "home", folder)
    store = versions.local_store(folder / "home")
    held = add(store, folder, "v4", records, flips=0.5)
    return folder / "home", [held, *records]


@pytest.fixture
def store(filled: tuple[Path, list[LineageRecord]], tmp_path: Path) -> Store:
    """v1, v2, v3 passed, v4 held; v3 is champion, v2 previous."""
    return versions.copied_store(filled[0], tmp_path / "home")


def aliases(store: Store) -> dict[str, int]:
    return store.registry.aliases("glyphs")


def told(store: Store) -> list[tuple[str, int | None, int, str]]:
    return [(event.kind, event.before, event.version, event.status) for event in store.history("glyphs")]


def gate(store: Store, version: int) -> str:
    return str(store.registry.client.get_model_version("glyphs", str(version)).tags[schema.TAG_GATE])


THREE = [
    ("promotion", None, 1, "FINISHED"),
    ("promotion", 1, 2, "FINISHED"),
    ("promotion", 2, 3, "FINISHED"),
]


# --- rollback ---------------------------------------------------------------------------------------------------------


def test_rollbacks_go_back_one_by_one_and_then_there_is_nothing_left(store: Store) -> None:
    first = store.rollback("glyphs", **WHO)
    assert first is not None
    assert (first.kind, first.before, first.version, first.name, first.actor) == ("rollback", 3, 2, "v2", "pytest")
    assert aliases(store) == {"champion": 2, "previous": 1}
    store.rollback("glyphs", **WHO)
    assert aliases(store) == {"champion": 1}
    with pytest.raises(SpecError, match="glyphs: no version was champion before this one; name one"):
        store.rollback("glyphs", **WHO)
    assert told(store) == [*THREE, ("rollback", 3, 2, "FINISHED"), ("rollback", 2, 1, "FINISHED")]
    store.promote("glyphs", 3, expected=1, **WHO)
    assert aliases(store) == {"champion": 3, "previous": 1}


def test_repeated_rollback_with_expectation_goes_back_once(store: Store) -> None:
    assert store.rollback("glyphs", expected=3, **WHO) is not None
    assert store.rollback("glyphs", expected=3, **WHO) is None
    assert aliases(store) == {"champion": 2, "previous": 1}
    with pytest.raises(RegistryError, match="champion is version 2, not version 1 as expected; read `graceful history"):
        store.rollback("glyphs", expected=1, **WHO)


def test_rollback_to_a_named_version(store: Store) -> None:
    store.rollback("glyphs", 1, **WHO)
    assert aliases(store) == {"champion": 1}
    assert store.rollback("glyphs", 1, **WHO) is None


def test_rollback_to_a_version_whose_files_were_altered_is_refused(
    store: Store, filled: tuple[Path, list[LineageRecord]]
) -> None:
    _, _, v2, _ = filled[1]
    node = store.registry.node(v2.model_id)
    assert node is not None
    (Path(node.artifact_location.removeprefix("file://")) / "arch.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"glyphs v2 .* arch\.json"):
        store.rollback("glyphs", **WHO)
    assert aliases(store) == {"champion": 3, "previous": 2}
    assert told(store) == THREE


def test_rollback_to_a_held_or_retired_version_is_refused(store: Store) -> None:
    with pytest.raises(RegistryError, match=r"v4 \(version 4\): is held by the gate"):
        store.rollback("glyphs", 4, **WHO)
    store.hold("glyphs", 2, reason="labels under review", actor="ann")
    with pytest.raises(RegistryError, match=r"v2 \(version 2\): is held by ann \(labels under review\)"):
        store.rollback("glyphs", **WHO)
    store.retire("glyphs", 1, **WHO)
    with pytest.raises(SpecError, match=r"v1 \(version 1\): is retired"):
        store.rollback("glyphs", 1, **WHO)
    assert aliases(store)["champion"] == 3


@pytest.mark.parametrize("dies_in", ["create_run", "set_registered_model_alias", "set_terminated"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_interrupted_rollback_is_completed_by_repeating_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, dies_in: str, after: bool
) -> None:
    client = store.registry.client
    real: Callable[..., object] = getattr(client, dies_in)

    def dying(*arguments: object, **named: object) -> None:
        if after:
            real(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(client, dies_in, dying)
        with pytest.raises(KeyboardInterrupt):
            store.rollback("glyphs", expected=3, **WHO)
    store.rollback("glyphs", expected=3, **WHO)
    assert aliases(store) == {"champion": 2, "previous": 1}
    assert told(store) == [*THREE, ("rollback", 3, 2, "FINISHED")]


# --- hold, release, waive ---------------------------------------------------------------------------------------------


def test_held_version_is_promoted_only_by_a_waiver_with_a_reason(store: Store) -> None:
    with pytest.raises(RegistryError, match=r"is held by the gate .* or one that is waived \(--waive\) for a reason"):
        store.promote("glyphs", 4, expected=3, **WHO)
    with pytest.raises(SpecError, match="--waive needs a reason"):
        store.promote("glyphs", 4, expected=3, reason=" ", actor="ann", waive=True)
    event = store.promote("glyphs", 4, expected=3, reason="the label was wrong", actor="ann", waive=True)
    assert event is not None
    assert event.waived
    assert gate(store, 4) == "waived"
    assert aliases(store) == {"champion": 4, "previous": 3}
    store.rollback("glyphs", **WHO)
    again = store.promote("glyphs", 4, expected=3, **WHO)  # the waiver stands
    assert again is not None
    assert not again.waived


def test_waiver_is_believed_of_events_not_of_a_tag(store: Store) -> None:
    store.registry.client.set_model_version_tag("glyphs", "4", schema.TAG_GATE, "waived")
    with pytest.raises(RegistryError, match="is held by the gate"):
        store.promote("glyphs", 4, expected=3, **WHO)


def test_hold_by_hand_keeps_a_passed_version_back_until_it_is_released(store: Store) -> None:
    assert store.hold("glyphs", 1, reason="under review", actor="ann") is not None
    assert store.hold("glyphs", 1, reason="under review", actor="ann") is None
    assert gate(store, 1) == "held"
    store.registry.client.set_model_version_tag("glyphs", "1", schema.TAG_GATE, "passed")
    with pytest.raises(RegistryError, match=r"is held by ann \(under review\)"):
        store.promote("glyphs", 1, expected=3, **WHO)
    assert store.hold("glyphs", 1, release=True, reason="reviewed", actor="ann") is not None
    assert store.promote("glyphs", 1, expected=3, **WHO) is not None
    assert [event.kind for event in store.history("glyphs")][3:] == ["hold", "release", "promotion"]


def test_hold_of_the_gate_cannot_be_released_nor_the_champion_held(store: Store) -> None:
    with pytest.raises(SpecError, match=r"v4 \(version 4\): is held by the gate .* promote it with --waive"):
        store.hold("glyphs", 4, release=True, **WHO)
    with pytest.raises(SpecError, match=r"v3 \(version 3\): is champion; promote another version or roll back first"):
        store.hold("glyphs", 3, **WHO)
    assert told(store) == THREE


# --- retire -----------------------------------------------------------------------------------------------------------


def test_retired_version_stays_in_the_lineage_and_is_named_to_refreshes(
    store: Store, filled: tuple[Path, list[LineageRecord]]
) -> None:
    _, v3, v2, v1 = filled[1]
    assert store.retired("glyphs") == frozenset()
    assert store.retire("glyphs", 2, **WHO) is not None
    assert store.retire("glyphs", 2, **WHO) is None
    assert store.retired("glyphs") == {v2.model_id}
    assert store.chain("glyphs") == [v3, v2, v1]
    assert aliases(store) == {"champion": 3, "previous": 1}
    with pytest.raises(SpecError, match="is retired; refresh it under another name"):
        store.promote("glyphs", 2, expected=3, **WHO)
    with pytest.raises(SpecError, match="is retired"):
        store.promote("glyphs", 2, expected=3, waive=True, **WHO)


def test_champion_is_retired_only_by_force_and_the_next_refresh_then_starts_anew(store: Store) -> None:
    with pytest.raises(
        SpecError, match="is champion; promote another version or roll back first, or retire it with --f"
    ):
        store.retire("glyphs", 3, **WHO)
    event = store.retire("glyphs", 3, force=True, **WHO)
    assert event is not None
    assert event.forced
    assert aliases(store) == {"previous": 2}
    assert store.chain("glyphs") == []
    assert store.promote("glyphs", 2, expected=None, **WHO) is not None
    assert aliases(store)["champion"] == 2


def test_deleted_champion_is_noticed_before_a_refresh_forgets_the_chain(store: Store) -> None:
    store.registry.client.delete_model_version("glyphs", "3")
    assert "champion" not in aliases(store)
    with pytest.raises(
        RegistryError, match="the alias champion is gone, version 3 had it; run `graceful lineage repair"
    ):
        store.chain("glyphs")


# --- history ----------------------------------------------------------------------------------------------------------


def test_events_say_who_when_and_why_in_order(store: Store) -> None:
    store.rollback("glyphs", reason="<b>slow</b> | `x`", actor="ann")
    *_, last = store.history("glyphs")
    assert last == Event(
        kind="rollback",
        model="glyphs",
        version=2,
        before=3,
        node=last.node,
        name="v2",
        reason="<b>slow</b> | `x`",
        actor="ann",
        run_id=last.run_id,
        time=last.time,
        status="FINISHED",
    )
    run = store.registry.client.get_run(last.run_id)
    assert "<b>" not in run.data.tags["mlflow.note.content"]
    times = [event.time for event in store.history("glyphs")]
    assert times == sorted(set(times))
    assert store.history("nobody") == []


def test_order_of_events_does_not_depend_on_clocks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graceful.lineage.events.time.time", lambda: 1.0)  # this machine's clock is far behind
    store.rollback("glyphs", **WHO)
    store.promote("glyphs", 3, expected=2, **WHO)
    assert [event.kind for event in store.history("glyphs")][3:] == ["rollback", "promotion"]


def test_a_long_reason_is_kept_as_far_as_the_registry_can(store: Store) -> None:
    store.rollback("glyphs", reason="x" * 20_000, actor="y" * 20_000)
    *_, last = store.history("glyphs")
    assert (len(last.reason), len(last.actor)) == (5000, 500)


# --- what refreshes and receivers see of it ---------------------------------------------------------------------------


def test_refresh_leaves_retired_versions_out_and_keeps_the_champion_as_parent(
    store: Store, tmp_path: Path, filled: tuple[Path, list[LineageRecord]]
) -> None:
    from graceful import spec as specs
    from graceful.programs.runs import ancestry

    store.retire("glyphs", 2, **WHO)
    links = ancestry.read(store, specs.parse(versions.spec("v9")), tmp_path)
    assert [link.name for link in links] == ["v3", "v1"]
    with pytest.raises(SpecError, match="v2 is already an ancestor in model glyphs"):
        ancestry.read(store, specs.parse(versions.spec("v2")), tmp_path / "again")


def test_verdict_and_promotion_of_a_refresh_are_told(
    store: Store, tmp_path: Path, filled: tuple[Path, list[LineageRecord]]
) -> None:
    from graceful import spec as specs
    from graceful.programs.messages import notifications

    held, v3, _, _ = filled[1]
    with receiving(200) as receiver:
        registry = {"uri": None, "webhook": receiver.url}
        notices = notifications.of_refresh(
            Run.of(specs.parse(versions.spec("v3", registry=registry, home=str(tmp_path))))
        )
        notifications.tell(notices, store, v3, champion=3)
        notifications.tell(notices, store, held, champion=3)
    verdict, promotion, second = receiver.documents()
    assert [verdict["kind"], promotion["kind"], second["kind"]] == ["verdict", "promotion", "verdict"]
    assert (verdict["model"], verdict["version"], verdict["name"], verdict["verdict"]) == ("glyphs", 3, "v3", "passed")
    assert (promotion["actor"], promotion["champion"], promotion["urls"]) == ("pytest", 3, {})
    assert second["verdict"] == "held"
    assert second["nfr"]["worst"] == 0.5
    assert [edge["name"] for edge in second["nfr"]["by_predecessor"]] == ["v3", "v2", "v1"]
    assert second["reasons"][0].startswith("negative_flip_rate")
    assert len({document["id"] for document in (verdict, promotion, second)}) == 3


def test_what_people_do_is_told_to_the_address_of_the_models_spec(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graceful import spec as specs
    from graceful.programs.messages import notifications
    from graceful.programs.versions import act

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = store.registry.home

    def do(action: str, reference: str) -> None:
        act.act(act.Action(action=action, reference=reference, reason="r", author="ann"), home)

    with receiving(200) as receiver:
        registry = {"uri": None, "webhook": receiver.url}
        notifications.of_refresh(Run.of(specs.parse(versions.spec("v3", registry=registry, home=str(home)))))
        for action, reference in (
            ("promote", "glyphs:2"),
            ("rollback", "glyphs"),
            ("hold", "glyphs:1"),
            ("release", "glyphs:1"),
            ("retire", "glyphs:1"),
        ):
            do(action, reference)
        kinds = [document["kind"] for document in receiver.documents()]
        assert kinds == ["promotion", "rollback", "hold", "release", "retirement"]
        store.hold("glyphs", 2, reason="r", actor="ann")  # a command that died before it told of it
        do("hold", "glyphs:2")
        do("hold", "glyphs:2")
    assert [document["kind"] for document in receiver.documents()[5:]] == ["hold"]
    assert receiver.documents()[5]["version"] == 2


def run(store: Store, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line on this registry."""
    inherited = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "graceful.cli", *arguments, "--home", str(store.registry.home)]
    return subprocess.run(
        command, env={**inherited, **environment}, capture_output=True, text=True, check=False, timeout=240
    )


def test_command_line_from_promotion_to_history(store: Store) -> None:
    with receiving(200) as receiver:
        done = run(
            store, "promote", "glyphs:v1", "--expect", "3", "--reason", "r", "--author", "ann", "-o", "json",
            GRACEFUL_WEBHOOK=receiver.url, GRACEFUL_WEBHOOK_SECRET="k",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["version"], result["changed"], result["champion"], result["previous"]) == (1, True, 1, 3)
    (told_,) = receiver.documents()
    assert (told_["kind"], told_["actor"], told_["event"]) == ("promotion", "ann", result["event"])
    again = run(store, "promote", "glyphs:v1", "--expect", "3", "--reason", "r", "-o", "json")
    assert json.loads(again.stdout)["changed"] is False
    refused = run(store, "retire", "glyphs@champion", "--reason", "r")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert "glyphs v1 (version 1): is champion" in refused.stderr
    shown = run(store, "history", "glyphs:1", "-o", "json")
    events = [(event["kind"], event["before"], event["actor"]) for event in json.loads(shown.stdout)]
    assert events == [("promotion", None, "pytest"), ("promotion", 3, "ann")]
    store.registry.client.delete_registered_model_alias("glyphs", "champion")
    dry = run(store, "lineage", "repair", "glyphs", "--dry-run", "-o", "json")
    assert [(item["where"], item["repaired"]) for item in json.loads(dry.stdout)] == [("glyphs champion", False)]
    repaired = run(store, "lineage", "repair", "glyphs")
    assert (repaired.returncode, repaired.stdout) == (0, "glyphs champion: was unset, is version 1 as the events say\n")
