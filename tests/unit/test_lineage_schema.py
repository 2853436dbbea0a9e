"""Records survive JSON unchanged, refuse what does not fit, and are walked by parents alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from graceful import spec as specs
from graceful.constraints import Constraint, Direction
from graceful.errors import RegistryError, SpecError
from graceful.gate import judge
from graceful.lineage import LineageRecord, Node, connection, graph, schema
from graceful.report import Comparison, Measurement, Report
from tests.support.mlflow_records import node_id, record


def test_record_survives_json() -> None:
    written = record("v3", ["v2", "v1"])
    assert LineageRecord.from_json(written.to_json()) == written
    assert LineageRecord.from_json(written.to_json()).to_json() == written.to_json()


def test_version_number_is_not_part_of_the_truth() -> None:
    assert replace(record("v1"), version=7).to_json() == record("v1").to_json()


def _without(key: str) -> Any:
    return lambda raw: raw.pop(key)


def _with(*path: Any, value: Any) -> Any:
    def change(raw: Any) -> None:
        for step in path[:-1]:
            raw = raw[step]
        raw[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("parents"), "parents: "),
        (_with("extra", value=1), "extra: "),
        (_with("edges", 0, "extra", value=1), "edges.0.extra: "),
        (_with("edges", 0, "verdict", value="waived"), "edges.0.verdict: "),
        (_with("verdict", value="approved"), "verdict: "),
        (_with("model_id", value="m-1"), "model_id: "),
        (_with("parents", 0, "model_id", value="../../etc"), "parents.0.model_id: "),
        (_with("spec_digest", value="abc"), "spec_digest: "),
        (_with("manifest", value="0" * 64), "manifest is not the digest of files"),
        (_with("files", value={"../weights": "0" * 64}), "files.../weights"),
        (_with("files", value={"/weights": "0" * 64}), "files./weights"),
        (_with("files", value={"a/../b": "0" * 64}), "files.a/../b"),
        (_with("files", value={"..": "0" * 64}), "files..."),
        (_with("schema", value=2), "schema is 2, this graceful reads 1"),
    ],
)
def test_record_that_does_not_fit_is_refused_in_one_line(change: Any, said: str) -> None:
    raw = json.loads(record("v2", ["v1"]).to_json())
    change(raw)
    with pytest.raises(RegistryError) as raised:
        LineageRecord.from_json(json.dumps(raw), where="glyphs-v2: lineage.json")
    assert raised.value.message.startswith("glyphs-v2: lineage.json: ")
    assert said in raised.value.message
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("text", ["", "[1]", "null", "{", '{"schema": NaN}'])
def test_text_that_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(RegistryError, match=r"lineage\.json: "):
        LineageRecord.from_json(text)


def test_spec_digest_is_the_specs_own() -> None:
    spec = specs.parse({"model": "glyphs", "name": "v2", "task": {"kind": "digits"}, "home": "/x", "description": "d"})
    assert schema.spec_digest(spec.dump()) == spec.digest()


def test_edges_carry_the_tightest_bound_and_the_worst_finding() -> None:
    flips = Measurement(value=0.01, lower=0.005, upper=0.02, n=1000)
    report = Report(
        model="glyphs",
        version="v3",
        data={},
        measurements={},
        comparisons=tuple(
            Comparison(against=name, model_id=node_id(name), distance=distance, measurements={schema.NFR: flips})
            for name, distance in (("v1", 2), ("v2", 1))
        ),
    )
    wide = Constraint(metric=schema.NFR, direction=Direction.AT_MOST, bound=0.05, against="all")
    tight = Constraint(metric=schema.NFR, direction=Direction.AT_MOST, bound=0.015, against="v1")
    edges = schema.edges(report, judge(report, [wide, tight]))
    assert [(edge.name, edge.distance, edge.bound, edge.verdict) for edge in edges] == [
        ("v2", 1, 0.05, "passed"),
        ("v1", 2, 0.015, "held"),
    ]
    assert {edge.verdict for edge in schema.edges(report, judge(report, []))} == {"unjudged"}


# --- the walk ---------------------------------------------------------------------------------------------------------


def walk(root: str, family: dict[str, list[str]]) -> list[str]:
    records = {node_id(name): record(name, parents) for name, parents in family.items()}

    def read(model_id: str) -> LineageRecord:
        if model_id not in records:
            raise RegistryError(f"holds no {model_id}")
        return records[model_id]

    return [found.name for found in graph.trace(node_id(root), read)]


def test_walk_follows_parents_only() -> None:
    assert walk("a", {"a": ["z"], "z": ["m"], "m": [], "q": ["a"]}) == ["a", "z", "m"]


def test_walk_names_each_version_once_and_before_its_own_parents() -> None:
    assert walk("v4", {"v4": ["v3", "b2"], "v3": ["v2"], "b2": ["v1"], "v2": ["v1"], "v1": []}) == [
        "v4", "v3", "v2", "b2", "v1",
    ]  # fmt: skip
    assert walk("v3", {"v3": ["v1", "v2"], "v2": ["v1"], "v1": []}) == ["v3", "v2", "v1"]


@pytest.mark.parametrize("family", [{"a": ["b"], "b": ["c"], "c": ["a"]}, {"a": ["a"]}, {"a": ["b"], "b": ["b"]}])
def test_walk_refuses_a_cycle(family: dict[str, list[str]]) -> None:
    with pytest.raises(RegistryError, match="descends from it; the lineage was altered"):
        walk("a", family)


def test_walk_names_the_child_of_a_missing_parent() -> None:
    with pytest.raises(RegistryError, match=rf"glyphs b .* has parent c: holds no {node_id('c')}"):
        walk("a", {"a": ["b"], "b": ["c"]})


def test_walk_is_not_bounded_by_the_interpreters_stack() -> None:
    length = sys.getrecursionlimit() + 100
    family = {f"v{index}": [f"v{index - 1}"] if index else [] for index in range(length)}
    assert len(walk(f"v{length - 1}", family)) == length


# --- where the registry is --------------------------------------------------------------------------------------------


def test_uri_is_the_given_one_then_the_environments_then_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert connection.resolve("http://given:1", tmp_path).uri == "http://given:1"
    assert connection.resolve(None, tmp_path).uri == "http://tracking:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    place = connection.resolve(None, tmp_path)
    assert place.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert place.artifacts == (tmp_path / "artifacts").as_uri()
    assert place.lock == tmp_path / "mlflow.db.lock"


def test_writers_with_different_homes_share_the_lock_of_one_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    assert connection.resolve(uri, tmp_path / "a").lock == connection.resolve(uri, tmp_path / "b").lock


@pytest.mark.parametrize("uri", ["mlruns", "file:///mlruns", "databricks", "ftp://host", "databricks://me:secret@host"])
def test_other_registries_are_refused_in_one_line(uri: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"must be http\(s\)://") as raised:
        connection.resolve(uri, tmp_path)
    assert "secret" not in raised.value.message


def test_credentials_move_from_the_uri_to_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(key, "before")
    place = connection.resolve("https://me:p%40ss@host:5000/prefix", tmp_path)
    assert (place.uri, place.display) == ("https://host:5000/prefix", "https://host:5000/prefix")
    import os

    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("me", "p@ss")


def test_password_of_a_database_is_never_shown(tmp_path: Path) -> None:
    place = connection.resolve("postgresql+psycopg2://me:p%40ss@host/registry", tmp_path)
    assert place.display == "postgresql+psycopg2://***@host/registry"
    with pytest.raises(RegistryError) as raised, connection.translated_errors(place, "connect"):
        raise OSError("could not reach postgresql+psycopg2://me:p@ss@host/registry\nat all")
    assert raised.value.message == (
        "registry postgresql+psycopg2://***@host/registry: cannot connect: could not reach"
        " postgresql+psycopg2://***@host/registry; check that the database server runs and that host, port, user,"
        " password and database of its URI are right"
    )
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        ("API request failed ... (Caused by ResponseError('too many 500 error responses'))", "errors of its own"),
        ("the response body was not in a valid JSON format. Response body: '<html>'", "not an MLflow server"),
        (
            "(raised by autoflush)\n(sqlite3.OperationalError) database or disk is full\n[SQL",
            "disk is full;",
        ),
        ("The following failures occurred:\n##### File a #####\nmore", "occurred: ##### File a #####;"),
    ],
)
def test_what_a_strange_server_answers_becomes_a_few_words(tmp_path: Path, raised: str, words: str) -> None:
    place = connection.resolve("http://127.0.0.1:9", tmp_path)
    with pytest.raises(RegistryError, match=words), connection.translated_errors(place, "connect"):
        raise OSError(raised)


def test_importing_the_room_imports_neither_mlflow_nor_torch() -> None:
    code = "import sys, graceful.lineage; sys.exit(sum(name in sys.modules for name in ('mlflow', 'torch', 'ray')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_node_equality_is_by_identity_and_name() -> None:
    assert Node(model_id=node_id("a"), name="a") == Node(model_id=node_id("a"), name="a")
