"""The example of linear-quadratic fine-tuning: trained, measured, registered and served, as any version is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from graceful import spec, tasks
from graceful.errors import SpecError
from graceful.models.stored import StoredVersion
from graceful.programs.refresh import refresh, train_only
from graceful.programs.runs.run import Run
from graceful.programs.versions import combine
from graceful.programs.versions.explain import Wanted, explain
from graceful.training.linear_start import starting_network
from graceful.training.start import require_start
from tests.support.lqf_rank import solved, stepped
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

    _explained(tmp_path, str(test.ids[int(np.flatnonzero(wrong)[0])]), linearised["v3"]["certificate"])
    versions = {name: runs[name].version(runs[name].model) for name in runs}
    _limited(tmp_path)
    _combined(tmp_path, versions)

    descent = spec.load(JOBS / "v3.yaml", ["train.method=descent", "compatibility.losses=[]"])
    with pytest.raises(SpecError, match="v2 is linearised, and weights with its delta added are another model"):
        require_start(descent, versions["v2"], task=task)
    method = runs["v3"].spec.train.method.model_copy(update={"head": "start"})
    with pytest.raises(SpecError, match=r"the head of v1 was trained on 90 of the \d+ training samples"):
        starting_network(method, task, task.samples("train"), start=versions["v1"], seed=0)


def _explained(home: Path, sample: str, certificate: dict[str, Any]) -> None:
    """A wrong answer of v3: terms of training samples add up to its margin, and to the change since v2."""
    explained = explain(Wanted(version="lqf:v3", sample=sample, top=5), home)
    assert explained.answer != explained.label == explained.away
    assert len(explained.pulls) == 5 < explained.counted == certificate["samples"]
    scale = abs(explained.margin) + abs(explained.at_start)
    assert abs(explained.unexplained) < certificate["relative_gradient"] * scale + 1e-3 * scale
    both = explain(Wanted(version="lqf:v3", sample=sample, against="lqf:v2"), home)
    assert both.other_margin is not None
    assert abs(both.unexplained) < 2e-3 * (abs(both.margin) + abs(both.other_margin) + scale)
    for asked, message in (
        (Wanted(version="lqf:v1", sample=sample), "v1 was not trained with train.method lqf"),
        (Wanted(version="lqf:v3", sample="nobody"), "test, validation or train has no sample 'nobody'"),
    ):
        with pytest.raises(SpecError, match=message):
            explain(asked, home)


def _limited(home: Path) -> None:
    """A version within a budget of drift that keeps protected samples right."""
    train = tasks.build(spec.load(JOBS / "v3.yaml").task).samples("train")
    ids = [str(name) for name in train.ids[:3]]
    method = {"kind": "lqf", "drift": 2.0, "protect": {"ids": ids, "margin": 9.0}}
    limits = ["compatibility.against=latest", f"train.method={json.dumps(method)}"]
    run = Run.of(spec.load(JOBS / "v3.yaml", ["name=v5", *limits]), home=home)
    notes = train_only(run).notes
    assert any("3 protected samples are answered right, the smallest margin is 9" in note for note in notes)
    (limited,) = (note for note in notes if "by weights of the losses x" in note)
    kept, free = (float(number) for number in re.findall(r"drift ([\d.]+), ([\d.]+) without", limited)[0])
    assert kept <= 2.0 < free
    assert run.version(run.model).description.linearised.certificate["order_independent"]
    method["protect"] = {"ids": ["nobody"]}
    wrong = Run.of(spec.load(JOBS / "v3.yaml", ["name=v6", f"train.method={json.dumps(method)}"]), home=home)
    with pytest.raises(SpecError, match="'nobody' is not a training sample"):
        train_only(wrong)


def _combined(home: Path, versions: dict[str, StoredVersion]) -> None:
    """Half of v2 and half of v3: predicted, made, registered, explained; folded; not with v1."""
    section = combine.spec_of(combine.Wanted(model="lqf", versions={"v2": 0.5, "v3": 0.5}, name="v4"), home)
    first, *mixes = combine.preview(section, home)
    assert (first.factors, first.error) == (mixes[5].factors, mixes[5].error)
    run = Run.of(section, home=home)
    result, report = refresh(run)
    said = f"error {100.0 * first.error:.2f} % predicted on {first.samples} validation samples"
    assert any(said in note for note in report.notes)
    assert any(f"{100.0 * first.error:.2f} % measured" in note for note in report.notes)
    assert run.store.record(result.model_id).certificate["versions"] == {"v2": 0.5, "v3": 0.5}
    test = tasks.build(section.task).samples("test")
    answers = {
        name: version.whole()(test.read(np.arange(20))).logits * version.whole().network.temperature
        for name, version in (("v2", versions["v2"]), ("v3", versions["v3"]), ("v4", run.version(run.model)))
    }
    torch.testing.assert_close(answers["v4"], 0.5 * answers["v2"] + 0.5 * answers["v3"], rtol=1e-4, atol=1e-3)
    explained = explain(Wanted(version="lqf:v4", sample=str(test.ids[0])), home)
    assert abs(explained.unexplained) < 2e-3 * (abs(explained.margin) + abs(explained.at_start))

    folded = combine.spec_of(combine.Wanted(model="lqf", versions={"v3": 1.0}, name="v7", folded=True), home)
    made = train_only(Run.of(folded, home=home))
    assert "linearised" not in json.loads((made.folder / "arch.json").read_text())
    for names, message in (({"v1": 1.0}, "v1 was not trained with train.method lqf"), ({"v9": 1.0}, "lqf:v9")):
        with pytest.raises(SpecError, match=message):
            combine.preview(combine.spec_of(combine.Wanted(model="lqf", versions=names, name="v8"), home), home)


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


def test_steps_on_two_workers_are_those_of_one(tmp_path: Path) -> None:
    """ZeRO 2 on two ranks takes the steps of plain torch on one: the second pass is an ordinary backward pass."""
    zero = {"kind": "deepspeed", "zero_stage": 2}
    both, _ = run_distributed(stepped, 2, str(tmp_path / "two"), zero)
    alone, *_ = run_distributed(stepped, 1, str(tmp_path / "one"), {"kind": "torch"})
    first, second = (outcome["linearised"]["certificate"]["relative_gradient"] for outcome in (alone, both))
    assert first == pytest.approx(second, rel=1e-3)
    assert first < 1.0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name in (name for name in one if name.startswith("delta.")):
        torch.testing.assert_close(two[name], one[name], rtol=0.0, atol=1e-3 * float(one[name].abs().max()))
