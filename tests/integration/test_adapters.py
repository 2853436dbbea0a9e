"""`graceful adapt` on real parts: two versions of glyphs, the registry, serving, a second call, files of vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from graceful import adapters, spec
from graceful.errors import SpecError
from graceful.lineage import Store, serving
from graceful.lineage.family import tree
from graceful.programs.adapting.program import Wanted, adapt
from graceful.programs.refresh import refresh
from graceful.programs.runs.run import Run

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),  # its own use of SQLAlchemy
]
JOBS = Path(__file__).parents[2] / "jobs"
SMALL = (
    "train.num_workers=0",
    "train.engine={kind: torch}",
    "train.epochs=4",
    "train.batch_size=32",
    "evaluate.bootstrap=100",
    "task.fonts=0.3",
    "task.classes=20",
    "compatibility.losses=[]",
    "gate.constraints=[]",
)
BOUNDS = {"adapter_share_recall_at_10": 0.5, "retrieval_nfr": 0.9}


def test_an_adapter_is_a_version_with_both_as_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path))
    for job in ("v1", "v2"):
        refresh(Run.of(spec.load(JOBS / "glyphs" / f"{job}.yaml", SMALL), home=tmp_path))
    wanted = Wanted(old="glyphs:1", new="glyphs:2", kinds=("procrustes", "low_rank"), bounds=BOUNDS)
    rows: list[object] = []
    result = adapt(wanted, tmp_path, progress=rows.append)
    assert (result["outcome"], result["version"], result["champion"]) == ("passed", 1, 1), result["reasons"]
    value = {name: measured["value"] for name, measured in result["metrics"].items()}
    assert value["cross_test_recall_at_10"] > 0.5 * value["full_recall_at_10"]
    assert any(row["stage"] == "adapter" for row in rows)  # type: ignore[index]
    assert adapt(wanted, tmp_path) == result
    with pytest.raises(SpecError, match="was fitted with other options"):
        adapt(Wanted(old="glyphs:1", new="glyphs:2", seed=1, bounds=BOUNDS), tmp_path)

    store = Store(None, tmp_path)
    record = store.record(result["model_id"])
    assert [parent.name for parent in record.parents] == ["v2", "v1"]
    assert [item.name for item in store.trace(record.model, record.model_id)] == ["v1-v2", "v2", "v1"]
    assert any("v1-v2" in line for line in tree(store.family("glyphs-adapter")))
    assert store.repair("glyphs-adapter", dry_run=True) == []
    adapter = adapters.load(store.fetch(record), expected_digest=record.digest)
    adapter.require_between(source=store.record(record.parents[0].model_id).digest,
                            target=store.record(record.parents[1].model_id).digest)  # fmt: skip

    vectors = np.random.default_rng(0).normal(size=(3, adapter.map.source)).astype(np.float32)
    served = serving._load_pyfunc(str(store.fetch(record)))
    np.testing.assert_allclose(served.predict(vectors), adapter(vectors), atol=1e-6)

    between = adapt(Wanted(old="glyphs:1", new="glyphs:2", kinds=("procrustes",), interpolate=True, name="between",
                           bounds={"adapter_gain_recall_at_10": 0.9}), tmp_path)  # fmt: skip
    assert (between["outcome"], between["champion"]) == ("held", 1)
    assert "adapter_gain_recall_at_10 against v1" in between["reasons"][0]
    assert json.loads((tmp_path / "runs" / "glyphs-adapter-between" / "result.json").read_text()) == between
    page = (tmp_path / "runs" / "glyphs-adapter-between" / "report.html").read_text(encoding="utf-8")
    assert "adapter_gain_recall_at_10" in page
    side = adapt(Wanted(old="glyphs:1", new="glyphs:2", kinds=("low_rank",), side="gallery", bounds=BOUNDS), tmp_path)
    assert side["metrics"]["full_recall_at_10"] == result["metrics"]["full_recall_at_10"]
