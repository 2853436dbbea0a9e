"""The example of linear-quadratic fine-tuning: trained, measured, registered and served, as any version is."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from graceful import learners, spec, tasks
from graceful.errors import SpecError
from graceful.programs.refresh import refresh
from graceful.programs.run import Run
from graceful.training.linear_start import starting_network
from graceful.training.start import require_start
from tests.support.lqf_rank import solved
from tests.support.training import run_distributed

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),  # its own use of SQLAlchemy
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),  # its view of our predict()
]
JOBS = Path(__file__).parents[2] / "jobs" / "lqf"


def test_example(tmp_path: Path) -> None:
    """v1 is trained, v2 and v3 are linearised at its weights; both carry a certificate and answer as measured."""
    runs, reports = {}, {}
    for name in ("v1", "v2", "v3"):
        runs[name] = Run.of(spec.load(JOBS / f"{name}.yaml"), home=tmp_path)
        result, reports[name] = refresh(runs[name])
        assert result.outcome == "passed", result.reasons
    described = {name: json.loads((runs[name].model / "arch.json").read_text()) for name in runs}
    assert "linearised" not in described["v1"]
    linearised = {name: described[name]["linearised"] for name in ("v2", "v3")}
    assert linearised["v2"]["start_sha256"] == linearised["v3"]["start_sha256"]
    for name, facts in linearised.items():
        assert facts["certificate"]["order_independent"]
        assert facts["certificate"]["solver"] == "exact"
        assert reports[name].certificate == facts["certificate"]
        assert any("does not depend on the order" in note for note in reports[name].notes)
    record = runs["v3"].store.record(result.model_id)
    assert record.certificate == linearised["v3"]["certificate"]
    assert "certificate" not in runs["v1"].folder.joinpath("report.json").read_text()
    assert "<h2>Certificate</h2>" in runs["v3"].folder.joinpath("report.html").read_text()
    errors = {name: report.measurements["error_rate"].value for name, report in reports.items()}
    assert errors["v3"] < errors["v2"] < errors["v1"] - 0.1
    flips = {item.against: item.measurements["negative_flip_rate"].value for item in reports["v3"].comparisons}
    assert set(flips) == {"v1", "v2"}
    assert max(flips.values()) < 0.05

    mlflow.set_tracking_uri(runs["v3"].store.display_uri)
    served = mlflow.pyfunc.load_model("models:/lqf@champion")
    task = tasks.build(runs["v3"].spec.task)
    test = task.samples("test")
    answers = served.predict(test.read(np.arange(len(test))))
    wrong = answers["label"] != np.asarray(test.classes)[test.labels]
    assert wrong.mean() == pytest.approx(errors["v3"])
    assert 0.5 < answers["probability"].max(1).mean() < 0.999  # a probability, not the scale of the targets

    versions = {name: runs[name].version(runs[name].model) for name in runs}
    one, two = (versions[name].whole().network for name in ("v2", "v3"))
    batch = torch.from_numpy(np.asarray(task.transform(test.read(np.arange(40)), None)))

    def run(network):
        return learners.run(learners.learner_of(task), network, batch).logits * network.temperature

    middle = 0.5 * run(one) + 0.5 * run(two)
    two.put({name: 0.5 * tensor + 0.5 * one.deltas()[name] for name, tensor in two.deltas().items()})
    torch.testing.assert_close(run(two), middle, rtol=1e-4, atol=1e-3)

    descent = spec.load(JOBS / "v3.yaml", ["train.method=descent", "compatibility.losses=[]"])
    with pytest.raises(SpecError, match="v2 is linearised, and weights with its delta added are another model"):
        require_start(descent, versions["v2"], task=task)
    method = runs["v3"].spec.train.method.model_copy(update={"head": "start"})
    with pytest.raises(SpecError, match=r"the head of v1 was trained on 90 of the \d+ training samples"):
        starting_network(method, task, task.samples("train"), start=versions["v1"], seed=0)


def test_two_workers_solve_what_one_does(tmp_path: Path) -> None:
    """Sums over two ranks give the same version up to rounding, and the same digest of the data."""
    both, _ = run_distributed(solved, 2, str(tmp_path / "two"))
    alone, *_ = run_distributed(solved, 1, str(tmp_path / "one"))
    first, second = (outcome["linearised"]["certificate"] for outcome in (alone, both))
    assert first["order_independent"]
    assert second["order_independent"]
    assert (first["data"], first["start"]) == (second["data"], second["start"])
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name in (name for name in one if name.startswith("delta.")):
        torch.testing.assert_close(two[name], one[name], rtol=0.0, atol=1e-3 * float(one[name].abs().max()))
