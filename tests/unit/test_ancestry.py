"""Which versions a run descends from: order, roles, names, and what older files say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from graceful import spec as specs
from graceful.errors import IntegrityError, SpecError
from graceful.lineage import LineageRecord
from graceful.lineage.fleet import Fleet
from graceful.lineage.listing import Listed
from graceful.programs import refresh as program
from graceful.programs.runs import ancestry
from graceful.programs.runs.run import Run
from tests.support import mlflow_versions as versions
from tests.support.mlflow_records import record


class Registry:
    """Chains by model, without a registry."""

    def __init__(self, chains: Mapping[str, Sequence[LineageRecord]], retired: Sequence[LineageRecord] = ()) -> None:
        self.chains = chains
        self.gone = {one.model_id for one in retired}

    def chain(self, model: str) -> list[LineageRecord]:
        return list(self.chains.get(model, ()))

    def trace(self, model: str, model_id: str) -> list[LineageRecord]:
        chain = self.chain(model)
        return chain[next(index for index, one in enumerate(chain) if one.model_id == model_id) :]

    def versions(self, model: str) -> list[Listed]:
        return [
            Listed(
                version=one.version, name=one.name, model_id=one.model_id, gate="passed", nfr_max_pct="", created=0,
                aliases=("champion",) if index == 0 else (),
            )
            for index, one in enumerate(self.chain(model))
        ]  # fmt: skip

    def fleet(self, model: str) -> Fleet:
        return Fleet(model=model)

    def retired(self, model: str) -> frozenset[str]:
        return frozenset(one.model_id for one in self.chain(model) if one.model_id in self.gone)


V1 = record("v1", version=1)
V2 = record("v2", ["v1"], version=2)
V3 = record("v3", ["v2"], version=3)
E1 = record("e1", ["v2"], version=1, model="glyphs-edge")
CHAINS = {"glyphs": [V3, V2, V1], "glyphs-edge": [E1, V2, V1]}


def links(store: Registry, folder: Path, **fields: Any) -> list[ancestry.Link]:
    return ancestry.read(store, specs.parse({**versions.spec("e2", "glyphs-edge"), **fields}), folder)  # type: ignore[arg-type]


def told(found: Sequence[ancestry.Link]) -> list[tuple[str, str]]:
    return [(link.name, link.role) for link in found]


def test_chain_of_the_champion_is_the_ancestry(tmp_path: Path) -> None:
    found = links(Registry(CHAINS), tmp_path)
    assert told(found) == [("e1", "champion"), ("v2", "ancestor"), ("v1", "ancestor")]
    assert ancestry.parents(found) == (E1.model_id,)
    assert ancestry.champion(found) == 1


def test_new_branch_descends_from_its_parents_and_has_no_champion(tmp_path: Path) -> None:
    found = links(Registry({"glyphs": CHAINS["glyphs"]}), tmp_path, parents=["glyphs@champion"])
    assert told(found) == [("v3", "parent"), ("v2", "ancestor"), ("v1", "ancestor")]
    assert ancestry.parents(found) == (V3.model_id,)
    assert ancestry.champion(found) is None


def test_merge_has_every_ancestor_once_and_behind_its_descendants(tmp_path: Path) -> None:
    found = links(Registry(CHAINS), tmp_path, parents=["glyphs:v3"])
    assert told(found) == [("e1", "champion"), ("v3", "parent"), ("v2", "ancestor"), ("v1", "ancestor")]
    assert ancestry.parents(found) == (E1.model_id, V3.model_id)
    assert ancestry.champion(found) == 1
    assert links(Registry({}), tmp_path, parents=["glyphs:v3"]) == found  # kept for a run that is resumed


def test_a_record_counts_once_something_was_made_with_it(tmp_path: Path) -> None:
    asked = specs.parse(versions.spec("v4"))
    before: Any = Registry({"glyphs": [V2, V1]})
    now: Any = Registry(CHAINS)
    assert told(ancestry.read(before, asked, tmp_path, begun=False, keep=False))[0] == ("v2", "champion")
    assert not (tmp_path / ancestry.FILE).exists()
    ancestry.read(before, asked, tmp_path, begun=False)
    assert told(ancestry.read(now, asked, tmp_path))[0] == ("v2", "champion")
    assert told(ancestry.read(now, asked, tmp_path, begun=False))[0] == ("v3", "champion")
    assert told(ancestry.read(before, asked, tmp_path))[0] == ("v3", "champion"), "and the new one is kept"


class AskedError(Exception):
    """The registry was asked for a version."""


class Refusing(Registry):
    """A registry that hands out no bundle, and says whose was wanted."""

    def record(self, model_id: str) -> str:
        return model_id

    def fetch(self, record: str, *, removable: Sequence[str]) -> Path:
        raise AskedError(record)


def test_the_matrix_of_a_run_that_has_not_started_does_not_settle_its_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = specs.parse(versions.spec("v4", home=str(tmp_path)))
    monkeypatch.setattr("graceful.lineage.Store", lambda uri, home: Refusing({}))
    with pytest.raises(SpecError, match="run glyphs-v4: no version and no ancestor"):
        program.matrix_of(Run.of(asked))
    assert not list(tmp_path.rglob(ancestry.FILE))


def test_a_run_that_has_not_trained_asks_for_the_champion_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = specs.parse(versions.spec("v4", home=str(tmp_path)))
    folder = tmp_path / "runs" / asked.run_id
    ancestry.read(Registry({"glyphs": [V2, V1]}), asked, folder)  # type: ignore[arg-type]
    stale = (folder / ancestry.FILE).read_text()
    monkeypatch.setattr("graceful.lineage.Store", lambda uri, home: Refusing(CHAINS))
    with pytest.raises(AskedError, match=V3.model_id):
        program.train_only(Run.of(asked))
    (folder / ancestry.FILE).write_text(stale)
    (folder / "spec.json").write_text("{}")
    with pytest.raises(AskedError, match=V2.model_id):
        program.train_only(Run.of(asked))


def test_the_matrix_of_another_version_s_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graceful.lineage.Store", lambda uri, home: Refusing(CHAINS))
    other = specs.parse(versions.spec("edge-e2", home=str(tmp_path)))
    held = tmp_path / "runs" / other.run_id / "model" / "arch.json"
    held.parent.mkdir(parents=True)
    held.write_text(json.dumps({"model": other.model, "name": other.name}))
    asked = specs.parse(versions.spec("e2", "glyphs-edge", home=str(tmp_path)))
    with pytest.raises(SpecError, match="run glyphs-edge-e2 holds glyphs edge-e2, not glyphs-edge e2: both have"):
        program.matrix_of(Run.of(asked))


@pytest.mark.parametrize("action", ["refresh", "train_only", "evaluate_only", "matrix_of"])
def test_a_run_whose_id_reads_as_another_version_s_is_refused_before_the_registry_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setattr("graceful.lineage.Store", lambda uri, home: Refusing(CHAINS))
    other = specs.parse(versions.spec("red-v1", "wine", home=str(tmp_path)))
    asked = specs.parse(versions.spec("v1", "wine-red", home=str(tmp_path)))
    folder = tmp_path / "runs" / other.run_id
    assert asked.run_id == folder.name
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps({"model": "wine", "name": "red-v1"}))
    (folder / "chain.json").write_text("[]")
    with pytest.raises(SpecError, match="run wine-red-v1 holds wine red-v1, not wine-red v1: both have this run id"):
        getattr(program, action)(Run.of(asked))


def test_champion_is_the_first_parent_also_where_the_other_one_descends_from_it(tmp_path: Path) -> None:
    found = links(Registry(CHAINS), tmp_path, model="glyphs", name="v4", parents=["glyphs-edge@champion"])
    assert told(found) == [("v3", "champion"), ("e1", "parent"), ("v2", "ancestor"), ("v1", "ancestor")]
    other = record("f1", ["v3"], version=1, model="glyphs-edge")
    store = Registry({"glyphs": [V3, V2, V1], "glyphs-edge": [other, V3, V2, V1]})
    found = links(store, tmp_path / "again", model="glyphs", name="v4", parents=["glyphs-edge@champion"])
    assert [link.name for link in found] == ["f1", "v3", "v2", "v1"]
    assert ancestry.parents(found) == (V3.model_id, other.model_id)
    assert ancestry.champion(found) == 3


def test_retired_versions_are_left_out(tmp_path: Path) -> None:
    found = links(Registry(CHAINS, retired=[V2]), tmp_path, parents=["glyphs:v3"])
    assert [link.name for link in found] == ["e1", "v3", "v1"]


def test_files_of_before_roles_name_the_champion_first(tmp_path: Path) -> None:
    old = [
        {"name": one.name, "model_id": one.model_id, "version": one.version, "digest": one.digest} for one in (V2, V1)
    ]
    (tmp_path / ancestry.FILE).write_text(json.dumps(old))
    found = links(Registry({}), tmp_path)
    assert ancestry.parents(found) == (V2.model_id,)
    assert ancestry.champion(found) == 2


def test_two_ancestors_of_one_name_are_refused(tmp_path: Path) -> None:
    twin = record("v1", version=1, model="glyphs-edge", model_id="m-" + "1" * 32)
    with pytest.raises(SpecError, match=r"parents: glyphs-edge and glyphs both have an ancestor called v1"):
        links(Registry({"glyphs": [V1], "glyphs-edge": [twin]}), tmp_path, parents=["glyphs:1"])
    with pytest.raises(SpecError, match="name: e2 is already an ancestor in model glyphs"):
        links(Registry({"glyphs": [record("e2", version=1)]}), tmp_path, parents=["glyphs:1"])
    assert not (tmp_path / ancestry.FILE).exists()


def test_unknown_parent_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no version glyphs:v9; there are 3 \(v3 @champion\)"):
        links(Registry(CHAINS), tmp_path, parents=["glyphs:v9"])


@pytest.mark.parametrize("parent", ["glyphs", "glyphs:", "Glyphs:v1", "glyphs@", "a/b:v1"])
def test_parent_of_another_form_is_refused_with_its_path(parent: str) -> None:
    with pytest.raises(SpecError, match=r"parents\.0"):
        specs.parse({**versions.spec("v2"), "parents": [parent]})


def test_digest_of_a_spec_knows_its_parents_and_is_as_before_without(tmp_path: Path) -> None:
    alone, none, two = (
        specs.parse({**versions.spec("v2"), **more}).digest()
        for more in ({}, {"parents": []}, {"parents": ["glyphs-edge@champion"]})
    )
    assert alone == none != two


def test_altered_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ancestry.FILE).write_text("[{]")
    with pytest.raises(IntegrityError, match=r"chain.json: not what a refresh wrote"):
        links(Registry({}), tmp_path)
