"""The registry on a real sqlite database: what is recorded, found again, verified and promoted."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from graceful.errors import IntegrityError, RegistryError, SpecError
from graceful.lineage import LineageRecord, Store, schema
from graceful.lineage.reading import _move_into_place
from graceful.storage import sha256_file
from tests.support import mlflow_versions as versions
from tests.support.mlflow_versions import add

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),  # its own use of SQLAlchemy
]


@pytest.fixture(scope="module")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("empty")
    assert versions.local_store(home).versions("none") == []
    return home


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, empty_home: Path) -> tuple[Path, list[LineageRecord]]:
    folder = tmp_path_factory.mktemp("filled")
    home = versions.copied_store(empty_home, folder / "home").registry.home
    return home, versions.three_versions(home, folder)


@pytest.fixture
def empty(empty_home: Path, tmp_path: Path) -> Store:
    """A registry of its own without versions."""
    return versions.copied_store(empty_home, tmp_path / "home")


@pytest.fixture
def store(filled: tuple[Path, list[LineageRecord]], tmp_path: Path) -> Store:
    """A registry of its own with `three`."""
    return versions.copied_store(filled[0], tmp_path / "home")


@pytest.fixture
def three(filled: tuple[Path, list[LineageRecord]]) -> list[LineageRecord]:
    """v3, v2, v1; the last is the champion."""
    return filled[1]


def artifact(store: Store, record: LineageRecord, name: str) -> Path:
    node = store.registry.node(record.model_id)
    assert node is not None
    if name == "lineage.json":
        run = store.registry.client.get_run(record.run_id)
        return Path(run.info.artifact_uri.removeprefix("file://")) / "lineage" / name
    return Path(node.artifact_location.removeprefix("file://")) / name


# --- chain ------------------------------------------------------------------------------------------------------------


def test_unknown_family_has_an_empty_chain(empty: Store) -> None:
    assert empty.chain("glyphs") == []


def test_family_without_champion_has_an_empty_chain(empty: Store, tmp_path: Path) -> None:
    v1 = add(empty, tmp_path, "v1", [])
    add(empty, tmp_path, "v2", [v1], flips=0.5)
    assert [record.name for record in empty.chain("glyphs")] == ["v1"]
    assert empty.chain("glyphs", alias="candidate") == []


def test_chain_is_read_back_as_it_was_recorded(store: Store, three: list[LineageRecord]) -> None:
    assert store.chain("glyphs") == three
    assert [edge.name for edge in three[0].edges] == ["v2", "v1"]
    assert [record.version for record in three] == [3, 2, 1]


def test_chain_follows_parents_where_names_numbers_and_times_mislead(empty: Store, tmp_path: Path) -> None:
    first = add(empty, tmp_path, "v9", [])
    second = add(empty, tmp_path, "v1", [first])
    aside = add(empty, tmp_path, "v5", [second, first], flips=0.5)
    third = add(empty, tmp_path, "v2", [second, first])
    assert aside.verdict == "held"
    assert [record.name for record in empty.chain("glyphs")] == ["v2", "v1", "v9"]
    assert empty.chain("glyphs")[0] == third


def test_missing_ancestor_is_named_with_its_child(store: Store, three: list[LineageRecord]) -> None:
    store.registry.client.delete_logged_model(three[1].model_id)
    with pytest.raises(RegistryError, match=rf"glyphs v3 .* has parent v2: .* holds no {three[1].model_id}") as raised:
        store.chain("glyphs")
    assert "\n" not in raised.value.message


def test_cycle_in_the_registry_is_refused(store: Store, three: list[LineageRecord]) -> None:
    v3, _, v1 = three
    looped = replace(v1, parents=(schema.Node(model_id=v3.model_id, name="v3"),))
    path = artifact(store, v1, "lineage.json")
    path.write_text(looped.to_json())
    store.registry.client.set_logged_model_tags(v1.model_id, {schema.TAG_RECORD: sha256_file(path)})
    with pytest.raises(RegistryError, match=r"glyphs v1 .* its recorded parent v3 .* descends from it"):
        store.chain("glyphs")


def test_altered_record_is_detected(store: Store, three: list[LineageRecord]) -> None:
    path = artifact(store, three[1], "lineage.json")
    path.write_text(path.read_text().replace("0.005", "0.001"))
    with pytest.raises(IntegrityError, match=r"glyphs-v2 .*lineage.json: SHA-256 must be"):
        store.chain("glyphs")


def test_version_made_by_hand_is_named(store: Store, three: list[LineageRecord], tmp_path: Path) -> None:
    client = store.registry.client
    listed = client.create_model_version("glyphs", source=tmp_path.as_uri(), await_creation_for=0)
    client.set_registered_model_alias("glyphs", "champion", listed.version)
    with pytest.raises(RegistryError, match="version 4: was not registered by graceful"):
        store.chain("glyphs")


# --- fetch ------------------------------------------------------------------------------------------------------------


def test_fetched_files_are_the_registered_ones(store: Store, three: list[LineageRecord], tmp_path: Path) -> None:
    folder = store.fetch(three[0])
    assert (folder / "model.safetensors").read_bytes() == b"glyphs-v3" * 100
    assert folder == store.registry.home / "versions" / three[0].model_id
    assert {path.name for path in folder.iterdir()} == set(three[0].files)


def test_verified_copy_is_reused_without_the_registry(store: Store, three: list[LineageRecord]) -> None:
    folder = store.fetch(three[0])
    elsewhere = Store("http://127.0.0.1:9", store.registry.home)
    assert elsewhere.fetch(three[0]) == folder


def test_damaged_local_copy_is_fetched_again(store: Store, three: list[LineageRecord]) -> None:
    weights = store.fetch(three[0]) / "model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(b"half")
    store.fetch(three[0])
    assert weights.read_bytes() == original


def test_processes_that_fetch_at_once_share_the_result(store: Store, three: list[LineageRecord]) -> None:
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(store.fetch(three[0]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [store.registry.home / "versions" / three[0].model_id] * 4
    assert {path.name for path in folders[0].iterdir()} == set(three[0].files)
    assert [path.name for path in folders[0].parent.iterdir()] == [three[0].model_id]


def test_a_version_that_another_process_has_just_put_in_place_stays_there(
    store: Store, three: list[LineageRecord], tmp_path: Path
) -> None:
    folder, fresh, aside = store.fetch(three[0]), tmp_path / "fresh", tmp_path / "damaged"
    shutil.copytree(folder, fresh)
    theirs = folder.stat().st_ino
    _move_into_place(fresh, folder, aside=aside, record=three[0], removed=())
    assert (folder.stat().st_ino, aside.exists()) == (theirs, False)
    (folder / next(iter(three[0].files))).unlink()
    _move_into_place(fresh, folder, aside=aside, record=three[0], removed=())
    assert (folder.stat().st_ino == theirs, aside.exists()) == (False, True)
    assert {path.name for path in folder.iterdir()} == set(three[0].files)


def test_tampered_artifact_is_refused_with_both_digests(store: Store, three: list[LineageRecord]) -> None:
    path = artifact(store, three[2], "model.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    expected, found = three[2].files["model.safetensors"], sha256_file(path)
    with pytest.raises(
        IntegrityError, match=rf"glyphs v1 .*model\.safetensors: SHA-256 must be {expected}, got {found}; restore"
    ):
        store.fetch(three[2])
    assert not (store.registry.home / "versions" / three[2].model_id).exists()


def test_manifest_tag_that_differs_is_refused(store: Store, three: list[LineageRecord]) -> None:
    store.registry.client.set_logged_model_tags(three[0].model_id, {schema.TAG_DIGEST: "0" * 64})
    with pytest.raises(IntegrityError, match="tag graceful_digest"):
        store.fetch(three[0])


# --- begin and register -----------------------------------------------------------------------------------------------


def test_begin_finds_the_same_run_and_refuses_another_spec(empty: Store) -> None:
    run = empty.begin(versions.spec("v1"), "glyphs-v1")
    assert empty.begin(versions.spec("v1", home="/elsewhere"), "glyphs-v1") == run
    other = versions.spec("v1", task={"kind": "digits", "share": 0.5})
    with pytest.raises(SpecError, match="glyphs-v1: was begun with another spec"):
        empty.begin(other, "glyphs-v1")
    empty.abandon(run)
    corrected = empty.begin(other, "glyphs-v1")
    assert corrected != run
    assert empty.begin(other, "glyphs-v1") == corrected


def test_a_refresh_that_failed_is_marked_and_taken_up_again(empty: Store) -> None:
    run = empty.begin(versions.spec("v1"), "glyphs-v1")
    empty.abandon(run)
    assert empty.registry.client.get_run(run).info.status == "FAILED"
    assert empty.begin(versions.spec("v1"), "glyphs-v1") == run
    assert empty.registry.client.get_run(run).info.status == "RUNNING"


def test_resumed_refresh_may_have_more_time(empty: Store) -> None:
    run = empty.begin(versions.spec("v1", train={"max_failures": 1}), "glyphs-v1")
    assert empty.begin(versions.spec("v1", train={"max_failures": 2}), "glyphs-v1") == run


def test_registry_password_reaches_neither_parameters_nor_artifacts(empty: Store, tmp_path: Path) -> None:
    item = versions.registration(empty, tmp_path, "v1", registry={"uri": "http://me:secret@host"})
    record = empty.register(item)
    client = empty.registry.client
    assert "secret" not in json.dumps(client.get_run(record.run_id).to_dictionary())
    texts = [path.read_text() for path in artifact(empty, record, "lineage.json").parent.glob("*.*")]
    assert len(texts) >= 5
    assert not any("secret" in text for text in texts)


def test_registering_twice_changes_nothing(store: Store, three: list[LineageRecord], tmp_path: Path) -> None:
    before = (store.versions("glyphs"), artifact(store, three[0], "lineage.json").read_bytes())
    again = store.register(versions.registration(store, tmp_path, "v3", three[1:]))
    assert again == three[0]
    assert (store.versions("glyphs"), artifact(store, three[0], "lineage.json").read_bytes()) == before


def test_registering_other_weights_under_the_same_name_is_refused(
    store: Store, three: list[LineageRecord], tmp_path: Path
) -> None:
    item = replace(versions.registration(store, tmp_path, "v3", three[1:]), digest="0" * 64)
    with pytest.raises(RegistryError, match=r"glyphs v3 .* is registered with other weights"):
        store.register(item)


@pytest.mark.parametrize(
    "dies_in", ["finalize_logged_model", "log_batch", "log_artifacts", "log_artifact", "create_model_version"]
)
def test_interrupted_registration_is_completed_by_repeating_it(
    empty: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_in: str
) -> None:
    v1 = add(empty, tmp_path, "v1", [])
    item = versions.registration(empty, tmp_path, "v2", [v1])

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(empty.registry.client, dies_in, die)
        with pytest.raises(KeyboardInterrupt):
            empty.register(item)
    record = empty.register(item)
    assert [line.version for line in empty.versions("glyphs")] == [2, 1]
    assert empty.record(record.model_id) == record
    assert empty.registry.client.get_run(record.run_id).info.status == "FINISHED"
    experiment = empty.registry.experiment("glyphs")
    assert len(empty.registry.client.search_logged_models([experiment])) == 2


def test_unfinished_registration_is_named(store: Store, three: list[LineageRecord]) -> None:
    artifact(store, three[1], "lineage.json").unlink()
    with pytest.raises(RegistryError, match="not completely registered; run its refresh again"):
        store.record(three[1].model_id)


def test_edges_can_be_searched_and_seen_in_mlflow(store: Store, three: list[LineageRecord]) -> None:
    v3, v2, v1 = three
    client = store.registry.client
    tag = schema.parent_tag(v1.model_id)
    children = client.search_logged_models([store.registry.experiment("glyphs")], f"tags.{tag} = 'passed'")
    assert {node.model_id for node in children} == {v2.model_id, v3.model_id}
    run = client.get_run(v3.run_id)
    assert {item.model_id for item in run.inputs.model_inputs} == {v1.model_id, v2.model_id}
    assert [item.model_id for item in run.outputs.model_outputs] == [v3.model_id]
    found = client.search_model_versions("name = 'glyphs' and tags.graceful_parents LIKE '%/glyphs@2/%'")
    assert [int(listed.version) for listed in found] == [3]
    node = client.get_logged_model(v3.model_id)
    numbers = {(metric.key, metric.step): metric.value for metric in node.metrics}
    assert numbers["nfr_pct/v1", 0] == pytest.approx(0.5)
    assert numbers["nfr_max_pct", 0] == pytest.approx(0.5)
    assert numbers["accuracy", 0] == pytest.approx(0.875)
    history = client.get_metric_history(v3.run_id, "nfr_by_predecessor_pct")
    assert {metric.step for metric in history} == {1, 2}


def test_version_has_at_most_five_tags_and_a_readable_first_line(store: Store, three: list[LineageRecord]) -> None:
    listed = store.registry.client.get_model_version("glyphs", "3")
    assert len([key for key in listed.tags if key.startswith("graceful_")]) <= 5
    assert listed.description.splitlines()[0] == "PASSED: worst NFR 0.50% vs 2 predecessors, accuracy 0.875"
    assert f"run_uuid={three[0].run_id}" in listed.description


def test_history_is_stored_once_however_often_it_is_logged(empty: Store) -> None:
    run = empty.begin(versions.spec("v1"), "glyphs-v1")
    rows = [{"step": step, "loss": 1.0 / (step + 1), "note": "x", "bad": float("nan")} for step in range(1200)]
    empty.log_history(run, rows)
    empty.log_history(run, rows)
    history = empty.registry.client.get_metric_history(run, "loss")
    assert [metric.step for metric in history] == list(range(1200))
    assert "bad" not in empty.registry.client.get_run(run).data.metrics


def test_versions(store: Store, three: list[LineageRecord]) -> None:
    lines = store.versions("glyphs")
    assert [(line.version, line.name, line.gate, line.aliases) for line in lines] == [
        (3, "v3", "passed", ("champion",)),
        (2, "v2", "passed", ("previous",)),
        (1, "v1", "passed", ()),
    ]
    assert store.versions("other") == []


# --- promote ----------------------------------------------------------------------------------------------------------


def test_promotion_sets_previous_and_leaves_an_audit(store: Store, three: list[LineageRecord]) -> None:
    assert store.registry.aliases("glyphs") == {"champion": 3, "previous": 2}
    experiment = store.registry.experiment("glyphs")
    audits = store.registry.client.search_runs([experiment], "tags.graceful_kind = 'promotion'")
    told = {(run.data.tags["graceful_from"], run.data.tags["graceful_to"], run.info.status) for run in audits}
    assert told == {("None", "1", "FINISHED"), ("1", "2", "FINISHED"), ("2", "3", "FINISHED")}
    assert {run.data.tags["graceful_actor"] for run in audits} == {"pytest"}


def test_promoting_the_champion_again_changes_nothing(store: Store, three: list[LineageRecord]) -> None:
    experiment = store.registry.experiment("glyphs")
    before = len(store.registry.client.search_runs([experiment]))
    store.promote("glyphs", 3, expected=2, reason="again", actor="pytest")
    assert store.registry.aliases("glyphs") == {"champion": 3, "previous": 2}
    assert len(store.registry.client.search_runs([experiment])) == before


def test_champion_that_moved_meanwhile_is_not_overwritten(
    store: Store, three: list[LineageRecord], tmp_path: Path
) -> None:
    late = store.register(versions.registration(store, tmp_path, "v4", three[1:]))
    with pytest.raises(RegistryError, match="champion is version 3, not version 2 as when version 4 was judged"):
        store.promote("glyphs", late.version, expected=2, reason="late", actor="pytest")
    with pytest.raises(RegistryError, match="champion is version 3, not unset"):
        store.promote("glyphs", late.version, expected=None, reason="late", actor="pytest")
    assert store.registry.aliases("glyphs") == {"champion": 3, "previous": 2}


def test_two_writers_at_once_promote_one(store: Store, three: list[LineageRecord], tmp_path: Path) -> None:
    rivals = [store.register(versions.registration(store, tmp_path, name, three)) for name in ("v4", "v5")]
    outcomes: list[str] = []

    def move(version: int) -> None:
        try:
            store.promote("glyphs", version, expected=3, reason="race", actor="pytest")
            outcomes.append("moved")
        except RegistryError:
            outcomes.append("refused")

    threads = [threading.Thread(target=move, args=(rival.version,)) for rival in rivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["moved", "refused"]


def test_held_version_is_never_promoted(store: Store, three: list[LineageRecord], tmp_path: Path) -> None:
    held = add(store, tmp_path, "v4", three, flips=0.5)
    assert held.verdict == "held"
    with pytest.raises(RegistryError, match=r"glyphs v4 \(version 4\): is held by the gate \(negative_flip_rate"):
        store.promote("glyphs", held.version, expected=3, reason="please", actor="pytest")
    store.registry.client.set_model_version_tag("glyphs", "4", schema.TAG_GATE, "passed")
    with pytest.raises(RegistryError, match="is held by the gate"):
        store.promote("glyphs", held.version, expected=3, reason="please", actor="pytest")
    assert store.registry.aliases("glyphs")["champion"] == 3


def test_tampered_version_is_not_promoted(store: Store, three: list[LineageRecord], tmp_path: Path) -> None:
    late = store.register(versions.registration(store, tmp_path, "v4", three))
    store.fetch(late)
    artifact(store, late, "arch.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"glyphs v4 .* arch\.json"):
        store.promote("glyphs", late.version, expected=3, reason="test", actor="pytest")
    assert store.registry.aliases("glyphs")["champion"] == 3


def test_unknown_version_is_not_promoted(store: Store, three: list[LineageRecord]) -> None:
    with pytest.raises(RegistryError, match="glyphs: has no version 9"):
        store.promote("glyphs", 9, expected=3, reason="test", actor="pytest")


@pytest.mark.parametrize("dies_at", [1, 2])
def test_interrupted_promotion_is_completed_by_repeating_it(
    store: Store, three: list[LineageRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    late = store.register(versions.registration(store, tmp_path, "v4", three))
    client = store.registry.client
    real, calls = client.set_registered_model_alias, []

    def dying(*arguments: object) -> None:
        calls.append(arguments)
        real(*arguments)
        if len(calls) == dies_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(client, "set_registered_model_alias", dying)
        with pytest.raises(KeyboardInterrupt):
            store.promote("glyphs", late.version, expected=3, reason="test", actor="pytest")
    store.promote("glyphs", late.version, expected=3, reason="test", actor="pytest")
    assert store.registry.aliases("glyphs") == {"champion": 4, "previous": 3}
    audits = client.search_runs([store.registry.experiment("glyphs")], "tags.graceful_to = '4'")
    assert [run.info.status for run in audits] == ["FINISHED"]


# --- trouble ----------------------------------------------------------------------------------------------------------


def test_store_leaves_no_uri_behind_for_the_next_one(
    empty: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    add(empty, tmp_path, "v1", [])
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert Store(None, tmp_path / "two").display_uri == f"sqlite:///{tmp_path / 'two' / 'mlflow.db'}"


def test_database_that_cannot_be_written_fails_at_once_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for name, content in (("file/mlflow.db", None), ("text.db", "not a database " * 100)):
        if content:
            (tmp_path / name).write_text(content)
        with pytest.raises(RegistryError, match=rf"registry sqlite:///{tmp_path / name}: cannot connect") as raised:
            Store(f"sqlite:///{tmp_path / name}", tmp_path).chain("glyphs")
        assert "\n" not in raised.value.message


def test_locked_database_is_reported_in_one_line(empty: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graceful.lineage.connection.PROBE_SECONDS", 0.1)
    holder = sqlite3.connect(empty.registry.home / "mlflow.db")
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(RegistryError, match=r"database is locked; check .* that no other program holds it"):
            empty.chain("glyphs")
    finally:
        holder.close()
