"""A fleet on real parts: jobs/hvs on jobs/glyphs' gallery, a new gallery version, the matrix, a retirement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graceful import spec
from graceful.errors import SpecError
from graceful.lineage import Store
from graceful.lineage.family import tree
from graceful.models import bundle
from graceful.programs.exporting.program import Wanted, export
from graceful.programs.indexing import backfilling
from graceful.programs.indexing import program as indexing
from graceful.programs.indexing.source import Source, embedder
from graceful.programs.refresh import matrix_of, refresh
from graceful.programs.runs.novelty import skipped
from graceful.programs.runs.run import Run
from graceful.programs.versions.act import Action, act

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),  # its own use of SQLAlchemy
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of torch's exporter, about itself
]
JOBS = Path(__file__).parents[2] / "jobs"
SMALL = (
    "train.num_workers=0",
    "train.engine={kind: torch}",
    "train.epochs=4",
    "train.batch_size=32",
    "evaluate.bootstrap=100",
)
DATA = ("task.fonts=0.3", "task.classes=20")


def run_of(job: str, home: Path, *overrides: str) -> Run:
    return Run.of(spec.load(JOBS / job, [*SMALL, *DATA, *overrides]), home=home)


def constraint(metric: str, bound: float) -> str:
    return f"gate.constraints=[{{metric: {metric}, bound: {bound}}}]"


def indexed(home: Path, old: str, new: str) -> None:
    """An index of v1's gallery finds what v1's report says, refuses v2, and after a backfill finds what v2's says."""

    def act_on(action: str, version: str, split: str, program: Any = indexing, **parts: Any) -> Any:
        source = {"version": version, "split": split}
        document = {"action": action, "index": str(home / "gallery"), "source": source, **parts}
        return program.act(program.Action.of(document), home).document

    def recall(version: str) -> float:
        found = act_on("query", version, "query", k=1)["queries"]
        labels = dict(zip(*queries, strict=True))
        return sum(item["hits"][0]["payload"]["label"] == labels[item["query"]] for item in found) / len(found)

    def measured(report: str) -> float:
        value: float = json.loads(Path(report).read_text())["measurements"]["self_test_recall_at_1"]["value"]
        return value

    made = embedder(Source(version="glyphs:1", split="query"), home).embed(role="query")
    queries = made.ids.tolist(), made.payload["label"].tolist()
    act_on("build", "glyphs:1", "gallery")
    assert recall("glyphs:1") == pytest.approx(measured(old), abs=0.005)
    with pytest.raises(SpecError, match="queries of glyphs-v2"):
        recall("glyphs:2")
    plan = act_on("plan", "glyphs:2", "gallery", backfilling, sample=60)
    assert (plan["from"], plan["to"], plan["metric"]) == ("glyphs-v1", "glyphs-v2", "results of the same label")
    assert act_on("run", "glyphs:2", "gallery", backfilling)["state"] == "moved"
    assert recall("glyphs:2") == pytest.approx(measured(new), abs=0.005)


def test_a_query_model_is_judged_on_its_gallery_and_a_new_gallery_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path))
    gallery, _ = refresh(run_of("glyphs/v1.yaml", tmp_path, constraint("error_rate", 0.9)))
    query_run = run_of("hvs/query.yaml", tmp_path, constraint("pair_share_map", 0.3))
    query, report = refresh(query_run)
    assert (gallery.outcome, query.outcome) == ("passed", "passed"), query.reasons
    pair = report.pairs[0]
    assert (pair.against, pair.relation, report.ancestors) == ("glyphs-v1", "gallery", ())
    value = {name: measured.value or 0.0 for name, measured in pair.measurements.items()}
    assert value["pair_share_map"] > 0.5  # a model that was trained alone is at 0.1
    page = (query_run.folder / "report.html").read_text(encoding="utf-8")
    assert "Query models on galleries" in page
    described = bundle.describe(query_run.model)
    assert described.contract is not None
    assert described.contract["dimension"] == 64
    with pytest.raises(SpecError, match="another embedding contract than this query model: dimension 32, not 64") as e:
        refresh(run_of("hvs/query.yaml", tmp_path, "name=edge-v2", "task.network.embedding=32"))
    assert e.value.exit_code == 2

    again = run_of("hvs/query.yaml", tmp_path, "name=edge-v2", constraint("pair_share_map", 0.3))
    assert skipped(again) is not None  # the same data, and the same gallery model
    strict = constraint("pair_share_map", 0.95)
    held, report = refresh(run_of("glyphs/v2.yaml", tmp_path, "compatibility.losses=[]", strict))
    assert [(item.against, item.relation) for item in report.pairs] == [("glyphs-edge-edge-v1", "query")]
    assert held.outcome == "held"
    assert held.reasons[0].startswith("pair_share_map against glyphs-edge-edge-v1: lower end")

    store = Store(None, tmp_path)
    assert any("searches it, mAP" in line and "vs v1" in line for line in tree(store.family("glyphs")))
    document: dict[str, Any] = matrix_of(run_of("hvs/query.yaml", tmp_path, constraint("pair_share_map", 0.3)))
    pairs = document["live_pairs"]
    assert (pairs["queries"], pairs["galleries"]) == (["glyphs-edge-edge-v1"], ["glyphs-v1"])
    assert pairs["map"][0][0] == pytest.approx(value["pair_map"])
    assert json.loads((query_run.folder / "matrix.json").read_text(encoding="utf-8"))["live_pairs"] == pairs
    assert store.repair("glyphs-edge", dry_run=True) == []

    indexed(tmp_path, gallery.report, held.report)
    exported = export(Wanted(version="glyphs-edge:1", int8=True, out=str(tmp_path / "edge.onnx")), tmp_path)
    assert exported.verdict.outcome == "passed"
    said = exported.document
    assert said["version_digest"] == bundle.recorded_digest(query_run.model)
    assert said["metrics"]["pair_map/glyphs-v1"] == pytest.approx(value["pair_map"], abs=0.02)
    assert said["p95_ms"] >= said["p50_ms"] > 0.0
    promote = Action(action="promote", reference="glyphs:2", reason="all devices follow", author="a", waive=True)
    act(promote, tmp_path)
    assert skipped(again) is None  # its gallery model is another one now
    retired = act(Action(action="retire", reference="glyphs-edge:1", reason="gone", author="a", force=True), tmp_path)
    assert "ended pairs: glyphs-edge-edge-v1 on glyphs-v1" in retired.sentence()
    assert store.fleet("glyphs").pairs == frozenset()
