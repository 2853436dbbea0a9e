"""`graceful lineage repair` on a real sqlite registry: what derives is rebuilt, what was altered is named."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graceful.errors import RegistryError, SpecError
from graceful.lineage import LineageRecord, Store, pages, schema
from graceful.lineage.family_state import Repair
from tests.support import mlflow_versions as versions
from tests.support.mlflow_versions import add

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),  # its own use of SQLAlchemy
]

WHO = {"reason": "because", "actor": "pytest"}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[LineageRecord]]:
    folder = tmp_path_factory.mktemp("filled")
    records = versions.three_versions(folder / "home", folder)
    held = add(versions.local_store(folder / "home"), folder, "v4", records, flips=0.5)
    return folder / "home", [held, *records]


@pytest.fixture
def store(filled: tuple[Path, list[LineageRecord]], tmp_path: Path) -> Store:
    """v1, v2, v3 passed, v4 held; v3 is champion, v2 previous."""
    return versions.copied_store(filled[0], tmp_path / "home")


@pytest.fixture
def v3(filled: tuple[Path, list[LineageRecord]]) -> LineageRecord:
    return filled[1][1]


def said(repairs: list[Repair]) -> dict[str, str]:
    return {item.where: item.what for item in repairs}


def facts(store: Store) -> dict[str, Any]:
    """What people see: versions with tags and texts, nodes with tags and metrics, aliases, events."""
    client = store.registry.client
    listed = client.search_model_versions("name = 'glyphs'")
    nodes = client.search_logged_models([store.registry.experiment("glyphs")])
    return {
        "versions": {(item.version, item.source, item.description, *sorted(item.tags.items())) for item in listed},
        "nodes": {
            (node.model_id, *sorted(node.tags.items()), *sorted({(m.key, m.value) for m in node.metrics}))
            for node in nodes
        },
        "aliases": store.registry.aliases("glyphs"),
        "events": [(event.kind, event.version, event.status) for event in store.history("glyphs")],
    }


def test_nothing_to_mend(store: Store) -> None:
    before = facts(store)
    assert store.repair("glyphs", dry_run=True) == []
    assert store.repair("glyphs") == []
    assert facts(store) == before


def test_unknown_model(store: Store) -> None:
    with pytest.raises(SpecError, match=r"model nobody: registry .* has no such model"):
        store.repair("nobody")


def tags(store: Store, v3: LineageRecord) -> None:
    client = store.registry.client
    for key in (schema.TAG_GATE, schema.TAG_PARENTS, schema.TAG_REFRESH):
        client.delete_model_version_tag("glyphs", "2", key)
    client.set_model_version_tag("glyphs", "4", schema.TAG_GATE, "passed")
    client.set_model_version_tag("glyphs", "3", schema.TAG_NFR_MAX, "0.00")
    client.set_logged_model_tags(
        v3.model_id, {schema.TAG_DIGEST: "0" * 64, schema.parent_tag(v3.edges[1].model_id): "x"}
    )
    client.delete_logged_model_tag(v3.model_id, "mlflow.note.content")
    client.update_model_version("glyphs", "1", "wrong")


def alias(store: Store, v3: LineageRecord) -> None:
    store.registry.client.delete_registered_model_alias("glyphs", "champion")
    store.registry.client.set_registered_model_alias("glyphs", "previous", "1")


@pytest.mark.parametrize("damage", [tags, alias])
def test_what_derives_is_rebuilt_and_a_dry_run_only_tells(
    store: Store, v3: LineageRecord, damage: Callable[[Store, LineageRecord], None]
) -> None:
    before = facts(store)
    damage(store, v3)
    damaged = facts(store)
    told = store.repair("glyphs", dry_run=True)
    assert facts(store) == damaged
    repaired = store.repair("glyphs")
    assert {(item.where, item.what) for item in told} == {(item.where, item.what) for item in repaired}
    assert repaired
    assert all(item.repaired for item in repaired)
    after = facts(store)
    assert {key: after[key] for key in before if key != "events"} == {
        key: before[key] for key in before if key != "events"
    }
    assert store.repair("glyphs") == []


def test_champion_moved_by_hand_is_put_back_which_is_an_event(store: Store) -> None:
    store.registry.client.set_registered_model_alias("glyphs", "champion", "4")
    repairs = store.repair("glyphs")
    assert said(repairs)["glyphs champion"] == "was version 4, is version 3 as the events say"
    assert store.registry.aliases("glyphs") == {"champion": 3, "previous": 2}
    *_, last = store.history("glyphs")
    assert (last.kind, last.before, last.version, last.actor) == ("repair", 4, 3, "graceful lineage repair")


def test_deleted_champion_is_listed_again_and_serves_again(store: Store, v3: LineageRecord) -> None:
    store.registry.client.delete_model_version("glyphs", "3")
    repairs = store.repair("glyphs")
    assert said(repairs)[v3.label] == "listed under a number again"
    assert store.registry.aliases("glyphs") == {"champion": 5, "previous": 2}
    assert [record.name for record in store.chain("glyphs")] == ["v3", "v2", "v1"]
    assert store.repair("glyphs") == []


def test_held_and_retired_by_hand_stay_so(store: Store) -> None:
    store.hold("glyphs", 1, **WHO)
    store.retire("glyphs", 2, **WHO)
    store.promote("glyphs", 4, expected=3, waive=True, **WHO)
    assert store.repair("glyphs") == []
    for number in ("1", "2", "4"):
        store.registry.client.set_model_version_tag("glyphs", number, schema.TAG_GATE, "passed")
    store.repair("glyphs")
    assert {item.version: item.gate for item in store.versions("glyphs")} == {
        4: "waived",
        3: "passed",
        2: "retired",
        1: "held",
    }


def test_duplicates_are_folded(store: Store, v3: LineageRecord) -> None:
    client = store.registry.client
    from graceful.lineage.connection import as_global

    with as_global(store.registry.address):
        client.create_model_version(
            "glyphs",
            source=f"models:/{v3.model_id}",
            run_id=v3.run_id,
            model_id=v3.model_id,
            await_creation_for=0,
        )
    twin = client.create_logged_model(
        store.registry.experiment("glyphs"), name="glyphs-v3", tags={schema.TAG_REFRESH: "glyphs-v3"}
    )
    repairs = store.repair("glyphs")
    assert said(repairs) == {
        v3.label: "2 numbers folded onto the lowest",
        "glyphs-v3": f"duplicate {twin.model_id} of {v3.model_id} removed",
    }
    assert [item.version for item in store.versions("glyphs")] == [4, 3, 2, 1]
    assert store.repair("glyphs") == []


def test_altered_record_is_named_and_left(store: Store, v3: LineageRecord) -> None:
    run = store.registry.client.get_run(v3.run_id)
    path = Path(run.info.artifact_uri.removeprefix("file://")) / "lineage/lineage.json"
    path.write_text(path.read_text().replace("0.005", "0.001"))
    (repair,) = store.repair("glyphs")
    assert not repair.repaired
    assert repair.what.startswith("altered: glyphs-v3 (m-")
    assert "SHA-256 must be" in repair.what


@pytest.mark.parametrize("carried_out", [True, False])
def test_open_event_of_a_dead_writer_is_settled(
    store: Store, monkeypatch: pytest.MonkeyPatch, carried_out: bool
) -> None:
    dies_in = "set_terminated" if carried_out else "set_registered_model_alias"

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store.registry.client, dies_in, die)
        with pytest.raises(KeyboardInterrupt):
            store.rollback("glyphs", **WHO)
    store.repair("glyphs")
    *_, last = store.history("glyphs")
    assert (last.kind, last.status) == ("rollback", "FINISHED" if carried_out else "FAILED")
    assert store.registry.aliases("glyphs") == (
        {"champion": 2, "previous": 1} if carried_out else {"champion": 3, "previous": 2}
    )


BEGIN = """
import sys
from pathlib import Path
from graceful.lineage import Store
from tests.support import mlflow_versions as versions
store = versions.local_store(Path(sys.argv[1]))
sys.stdout.write(store.begin(versions.spec("v9"), "glyphs-v9"))
"""


def test_run_of_a_dead_process_is_failed_and_one_at_work_is_left(store: Store) -> None:
    mine = store.begin(versions.spec("v8"), "glyphs-v8")
    done = subprocess.run(
        [sys.executable, "-c", BEGIN, str(store.registry.home)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    elsewhere = store.begin(versions.spec("v7"), "glyphs-v7")
    store.registry.client.set_tag(elsewhere, schema.TAG_OWNER, "another-machine/1.2")
    assert [item.where for item in store.repair("glyphs")] == ["run of glyphs-v9"]
    status = {run: store.registry.client.get_run(run).info.status for run in (mine, done.stdout, elsewhere)}
    assert status == {mine: "RUNNING", done.stdout: "FAILED", elsewhere: "RUNNING"}
    assert [item.where for item in store.repair("glyphs", older_than_hours=0)] == ["run of glyphs-v7"]
    assert store.registry.client.get_run(elsewhere).info.status == "FAILED"


def test_a_page_that_was_edited_and_a_picture_that_is_lost_come_back(tmp_path: Path) -> None:
    versions.three_versions(tmp_path / "home", tmp_path)  # no copy: mlflow remembers where a run's artifacts were
    store = versions.local_store(tmp_path / "home")
    [picture] = store.registry.home.glob("artifacts/**/lineage/family.svg")
    drawn, page = picture.read_text(), store.registry.client.get_registered_model("glyphs").description
    pages.refresh(store.registry, "glyphs")
    assert store.registry.client.get_registered_model("glyphs").description == page
    picture.unlink()
    store.registry.client.update_registered_model("glyphs", "my own words")
    pages.refresh(store.registry, "glyphs")
    assert (picture.read_text(), store.registry.client.get_registered_model("glyphs").description) == (drawn, page)
    picture.unlink()  # the page is right, so only a repair looks further
    store.repair("glyphs")
    assert picture.read_text() == drawn


# --- what anybody may edit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "text", "told"),
    [
        ("graceful_to", "3rd", "tag graceful_to says '3rd', which is not a number"),
        ("graceful_to", "9" * 40, f"tag graceful_to says '{'9' * 40}', which is not a number"),
        ("graceful_to", None, "tag graceful_to is missing"),
        ("graceful_from", "²", "tag graceful_from says '²', which is not a number"),
    ],
)
def test_edited_number_in_an_event_is_named_and_stops_neither_history_nor_repair(
    store: Store, tag: str, text: str | None, told: str
) -> None:
    client = store.registry.client
    promoted = store.history("glyphs")[2]
    if text is None:
        client.delete_tag(promoted.run_id, tag)
    else:
        client.set_tag(promoted.run_id, tag, text)
    read = store.history("glyphs")[2]
    assert (read.run_id, read.kind, read.name, read.altered) == (promoted.run_id, "promotion", "v3", (told,))
    client.delete_model_version_tag("glyphs", "2", schema.TAG_GATE)
    repairs = store.repair("glyphs")
    assert [item.what for item in repairs if not item.repaired] == [
        f"altered: {told}; set the tag to the number of the version"
    ]
    assert said(repairs)["glyphs version 2"] == f"tag {schema.TAG_GATE} was missing, is passed"
    assert store.registry.aliases("glyphs") == {"champion": 3, "previous": 2}
    assert store.rollback("glyphs", **WHO) is not None
    assert store.registry.aliases("glyphs")["champion"] == 2


@pytest.mark.parametrize("owner", ["HOST/abc", "HOST/", "/12", "no slash", None])
def test_edited_owner_of_a_run_is_named(store: Store, owner: str | None) -> None:
    run = store.begin(versions.spec("v9"), "glyphs-v9")
    client = store.registry.client
    if owner is None:
        client.delete_tag(run, schema.TAG_OWNER)
    else:
        client.set_tag(run, schema.TAG_OWNER, owner.replace("HOST", socket.gethostname()))
    (repair,) = store.repair("glyphs")
    assert (repair.where, repair.repaired) == ("run of glyphs-v9", False)
    assert repair.what.startswith(f"altered: tag {schema.TAG_OWNER} ")
    (repair,) = store.repair("glyphs", older_than_hours=0)
    assert repair.repaired


@pytest.mark.parametrize("text", ["/glyphs@99999999999999999999/", "/it's@1/", "glyphs", "/glyphs@0/"])
def test_edited_parents_stop_nobody(store: Store, text: str) -> None:
    store.registry.client.set_model_version_tag("glyphs", "3", schema.TAG_PARENTS, text)
    assert [member.key.version for member in store.family("glyphs").members] == [4, 3, 2, 1]
    assert said(store.repair("glyphs")) == {"glyphs version 3": f"tag {schema.TAG_PARENTS} was {text}, is /glyphs@2/"}


# --- versions of others under the same model --------------------------------------------------------------------------


def test_versions_of_others_are_named_and_stop_nobody(store: Store, tmp_path: Path) -> None:
    from graceful.lineage.connection import as_global
    from graceful.programs.runs import ancestry
    from graceful.programs.versions import act
    from graceful.programs.versions.lineage import unregistered_note
    from graceful.programs.versions.lineage import versions as shown

    client = store.registry.client
    experiment = client.create_experiment("another team's", artifact_location=(tmp_path / "theirs").as_uri())
    run = client.create_run(experiment).info.run_id
    node = client.create_logged_model(experiment, name="theirs", source_run_id=run).model_id
    tags = {"team": "search", "graceful": "no"}
    with as_global(store.registry.address):
        for source, run_id in ((f"models:/{node}", run), ("s3://bucket/model", None), (f"runs:/{run}/model", run)):
            client.create_model_version("glyphs", source=source, run_id=run_id, tags=tags, await_creation_for=0)
    assert [item.version for item in store.versions("glyphs") if not item.model_id] == [7, 6, 5]
    assert [version.record.name for version in shown(store, "glyphs")] == ["v1", "v2", "v3", "v4"]
    assert [version.record.name for version in shown(store, "glyphs", last=4)] == ["v4"]
    assert unregistered_note(store, "glyphs").startswith("left out: versions 5, 6, 7, not registered by graceful")
    assert len(store.family("glyphs").members) == 7
    assert store.repair("glyphs") == []
    assert [record.name for record in store.chain("glyphs")] == ["v3", "v2", "v1"]
    for number in (5, 6, 7):
        with pytest.raises(SpecError, match=f"version {number} was not registered by graceful"):
            ancestry.find(store, f"glyphs:{number}")
        with pytest.raises(RegistryError, match="was not registered by graceful"):
            store.promote("glyphs", number, expected=3, **WHO)
    home = store.registry.home
    assert len(act.history(act.Action(action="history", reference="glyphs"), home)) == 3
    added = add(store, tmp_path, "v5", store.chain("glyphs"))
    assert (added.version, store.registry.aliases("glyphs")) == (8, {"champion": 8, "previous": 3})
    client.set_registered_model_alias("glyphs", "champion", "5")
    with pytest.raises(RegistryError, match=r"theirs .* was not registered by graceful; name a version that was"):
        store.chain("glyphs")
    assert said(store.repair("glyphs"))["glyphs champion"] == "was version 5, is version 8 as the events say"
