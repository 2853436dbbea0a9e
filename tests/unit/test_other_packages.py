"""Metrics and backends of other packages that are unfit: one line with the package, and all else goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graceful import catalogue, gate
from graceful.catalogue import About, Better, Metric
from graceful.constraints import Constraint, Direction
from graceful.errors import DataError
from graceful.metrics import added
from graceful.report import Measurement, Report
from graceful.testing import loss as loss_checker
from graceful.testing import metric as metric_checker
from tests.support.other_package import install, search_path
from tests.unit.conftest import small_report

METRICS = """
from graceful.catalogue import About, Better, Metric

def measure(inputs):
    return None

def row(name, **changes):
    return Metric(**{"name": name, "about": About.ANCESTOR, "better": Better.LOWER, "measure": measure, **changes})

GOOD, TWIN, TAKEN = row("good"), row("twin"), row("error_rate")
MISNAMED = row("other_name")
UNMEASURED = row("unmeasured", measure=None)
EMPTY_RANGE = row("empty_range", lowest=1.0, highest=0.0)
WORDLESS = row("wordless", about="ancestor")
NO_METRIC = object()
"""
BACKENDS = """
from typing import Literal
from graceful.launch.base import Profile

class Good(Profile):
    kind: Literal["good"]
    def build(self, *, home, offline=False, warn=None):
        raise NotImplementedError

class Misnamed(Good):
    kind: Literal["other"]

class Bare(Profile):
    kind: Literal["bare"]
"""
ENTRY_POINTS = """
[graceful.metrics]
good = other_package.metrics:GOOD
error_rate = other_package.metrics:TAKEN
misnamed = other_package.metrics:MISNAMED
unmeasured = other_package.metrics:UNMEASURED
empty_range = other_package.metrics:EMPTY_RANGE
wordless = other_package.metrics:WORDLESS
no_metric = other_package.metrics:NO_METRIC
raises = other_package.raises:METRIC
twin = other_package.metrics:TWIN

[graceful.backends]
good = other_package.backends:Good
local = other_package.backends:Good
misnamed = other_package.backends:Misnamed
bare = other_package.backends:Bare
raises = other_package.raises:Backend
no_profile = other_package.metrics:GOOD
"""
PROGRAM = """
import json, sys
from graceful import spec
from graceful.errors import SpecError
from graceful.launch import profile

def refusal(action):
    try:
        return str(action())
    except SpecError as error:
        return error.message

def constraint(name):
    document = {"model": "m", "name": "v", "task": {"kind": "digits"}}
    gate = {"constraints": [{"metric": name, "bound": 0.5}]}
    return spec.parse({**document, "gate": gate}).gate.constraints[0].direction

metrics, backends = json.loads(sys.argv[1])
answers = {f"metric {name}": refusal(lambda: constraint(name)) for name in metrics}
answers |= {f"backend {kind}": refusal(lambda: profile.parse({"kind": kind}).kind) for kind in backends}
print(json.dumps(answers))
assert not {"torch", "numpy"} & set(sys.modules)
"""
EXPECTED = {
    "metric good": "at_most",
    "metric error_rate": "at_most",
    "metric misnamed": "other-package offers the metric misnamed as other_package.metrics:MISNAMED, whose name",
    "metric unmeasured": "which has no function that measures it; give it measure",
    "metric empty_range": "whose range must be two numbers, the lower first, got (1.0, 0.0)",
    "metric wordless": "whose about and better must be members of About and Better",
    "metric no_metric": "which is not a graceful.catalogue.Metric",
    "metric raises": "which cannot be imported (RuntimeError: needs another driver)",
    "metric twin": "and another package offers that name, too",
    "metric goood": "metric 'goood' is not measured; did you mean good?",
    "backend good": "good",
    "backend local": "local",
    "backend misnamed": 'whose kind is another one; write kind: Literal["misnamed"]',
    "backend bare": "which has no method build; define it",
    "backend raises": "other-package offers the backend raises as other_package.raises:Backend, which cannot be ",
    "backend no_profile": "which is not a class derived from graceful.launch.base.Profile",
    "backend god": "must be one of local, rayjobs, kuberay, good, got 'god'; did you mean good?",
}


def test_what_is_unfit_is_refused_in_one_line_where_it_is_named(tmp_path: Path) -> None:
    modules = {"metrics": METRICS, "backends": BACKENDS, "raises": "raise RuntimeError('needs another\\n driver')"}
    site = install(tmp_path / "site", "other_package", modules, ENTRY_POINTS)
    install(site, "rival", {"metrics": METRICS}, "[graceful.metrics]\ntwin = rival.metrics:TWIN\n")
    names = [[key.split(" ")[1] for key in EXPECTED if key.startswith(f"{noun} ")] for noun in ("metric", "backend")]
    command = [sys.executable, "-c", PROGRAM, json.dumps(names)]
    env = {"PYTHONPATH": search_path(site)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert {key: answers[key] for key, text in EXPECTED.items() if text not in answers[key]} == {}
    assert not [text for text in answers.values() if "\n" in text]


def metric(measure: Any, **changes: Any) -> Metric:
    row = {"name": "mine", "about": About.ANCESTOR, "better": Better.HIGHER, "unit": "nats", "measure": measure}
    return Metric(**{**row, **changes})


@pytest.mark.parametrize(
    ("measure", "reason"),
    [
        (lambda inputs: 0.5, "returns float, not a graceful.report.Measurement"),
        (lambda inputs: Measurement(value=float("nan")), "returns nan as value, which must lie in [0, 1]"),
        (lambda inputs: Measurement(value=1.5), "returns 1.5 as value, which must lie in [0, 1]"),
        (lambda inputs: Measurement(value=0.5, lower=0.6, upper=0.7), "returns the value 0.5 outside its interval"),
        (lambda inputs: Measurement(value=0.5, lower=0.4), "returns an interval with one end"),
        (lambda inputs: Measurement(value=None), "returns no value and no reason"),
        (lambda inputs: 1 / 0, "fails: ZeroDivisionError: division by zero"),
    ],
)
def test_a_function_that_fails_makes_its_measurement_undefined(measure: Any, reason: str) -> None:
    found = added.value_of(metric(measure), metric_checker.inputs(About.ANCESTOR))
    assert found.value is None
    assert found.reason == f"mine of {__name__} {reason}"
    with pytest.raises((AssertionError, ZeroDivisionError)):
        metric_checker.check(metric(measure))


def test_numbers_of_numpy_become_those_of_json() -> None:
    found = added.value_of(
        metric(lambda inputs: Measurement(value=np.float32(0.5), count=np.int64(1), n=np.int64(2))),
        metric_checker.inputs(About.ANCESTOR),
    )
    assert json.loads(replace(small_report(), measurements={"mine": found}).to_json())["measurements"]["mine"]["n"] == 2


def evidence(row: Mapping[str, Any], *, about: About = About.ANCESTOR) -> Report:
    measured = {"mine": Measurement(value=0.4, lower=0.3, upper=0.5, n=100)}
    report = small_report()
    first, *others = report.comparisons
    compared = (replace(first, measurements={**first.measurements, **measured}), *others)
    return replace(report, comparisons=compared, metrics={"mine": Metric.of_row({**ROW, **row, "about": about})})


ROW = metric(lambda inputs: None).row()


def test_a_report_is_judged_and_shown_by_its_own_row_where_the_package_is_missing() -> None:
    report = Report.from_json(evidence({}).to_json())
    assert report == evidence({})
    assert "mine" not in catalogue.others()
    bound = Constraint(metric="mine", direction=Direction.AT_LEAST, bound=0.35, against="latest")
    (finding,) = gate.judge(report, [bound]).findings
    assert not finding.met
    assert "lower end 0.3 nats is below the bound 0.35 nats (0.4 nats, n = 100)" in finding.reason
    with catalogue.recorded(report.metrics):
        assert catalogue.unit_of("mine") == "nats"
    assert catalogue.unit_of("mine") == ""


def test_a_chain_metric_of_a_missing_package_is_vacuous_for_a_first_link() -> None:
    report = replace(evidence({}, about=About.CHAIN), comparisons=())
    bound = Constraint(metric="mine", direction=Direction.AT_LEAST, bound=0.35, against="self")
    assert gate.judge(report, [bound]).findings[0].met


@pytest.mark.parametrize("change", [{"about": "weather"}, {"name": "other"}, {"lowest": 2.0}, {"colour": "red"}, None])
def test_a_damaged_row_in_a_report_is_refused(change: dict[str, Any] | None) -> None:
    document = json.loads(evidence({}).to_json())
    document["metrics"]["mine"] = None if change is None else {**document["metrics"]["mine"], **change}
    with pytest.raises(DataError, match="not a report of graceful"):
        Report.from_json(json.dumps(document))


def test_reports_without_metrics_of_other_packages_are_written_as_before() -> None:
    assert "metrics" not in json.loads(small_report().to_json())


def test_graceful_s_own_losses_pass_the_checker() -> None:
    from graceful.losses import registry

    for loss in registry.kinds().values():
        assert loss_checker.check(loss()).ndim == 0
