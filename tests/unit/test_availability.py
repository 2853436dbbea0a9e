"""Predecessors of which not everything is left: what works, what is refused, and that none passes unmeasured."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from graceful import gate, spec, tasks
from graceful.chain import Completeness
from graceful.constraints import CHAIN_METRICS, COMPARISON_METRICS, Constraint, Direction
from graceful.errors import DataError, IntegrityError, SpecError
from graceful.models import bundle, bundle_files, weights
from graceful.programs.evaluation.evaluate import evaluate
from graceful.programs.fitting.finishing import Trained
from graceful.report import Report
from graceful.storage import sha256_file
from graceful.tasks import code
from tests.support import training_task
from tests.support.runs import train

RECIPE = {"epochs": 1, "batch_size": 24, "engine": {"kind": "torch"}, "num_workers": 0}
FOCAL = [{"kind": "focal_distillation"}]
HEAD_ALONE = [{"kind": "influence", "prototypes": False}]
STALE = {"mode": "clean", "allow_stale": True}


def parse(name: str, *, classes: int = 3, **compatibility: Any) -> spec.RefreshSpec:
    task = {"kind": "python", "file": training_task.__file__, "options": {"classes": classes}}
    section = {"targets": {"views": 2}, **compatibility}
    return spec.parse({"model": "blobs", "name": name, "task": task, "train": RECIPE, "compatibility": section})


def trained(document: spec.RefreshSpec, home: Path, *ancestors: Path) -> Trained:
    return train(document, run_dir=home / document.run_id, home=home, ancestors=ancestors)


def without(folder: Path, target: Path, *names: str) -> Path:
    """A copy of a bundle that lost some files."""
    shutil.copytree(folder, target)
    for name in names:
        (target / name).unlink()
    return target


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version that knows two of the three classes."""
    return trained(parse("v1", classes=2), tmp_path_factory.mktemp("old")).folder


@pytest.fixture
def headed(old: Path, tmp_path: Path) -> Path:
    return without(old, tmp_path / "headed", bundle_files.WEIGHTS)


@pytest.fixture
def bare(old: Path, tmp_path: Path) -> Path:
    return without(old, tmp_path / "bare", bundle_files.WEIGHTS, bundle_files.HEAD)


# --- the bundle -------------------------------------------------------------------------------------------------------


def test_what_is_left_keeps_its_identity_and_a_head_classifies_as_before(old: Path, headed: Path, bare: Path) -> None:
    whole = training_task.opened(old)
    embedding = torch.randn(5, 8)
    for folder, kept in ((headed, Completeness.HEAD), (bare, Completeness.NOTHING)):
        version = training_task.opened(folder, expected_digest=whole.digest, at_least=Completeness.NOTHING)
        assert (version.completeness, version.digest, version.classes) == (kept, whole.digest, whole.classes)
        assert version.transform_digest == whole.transform_digest
        with pytest.raises(DataError, match=r"v1: cannot be run, (only its head is left|its weights are gone); rest"):
            version(np.zeros((1, 6), dtype=np.float32))
    head: Any = training_task.opened(headed, at_least=Completeness.HEAD).network
    assert torch.equal(head.classify(embedding), whole.network.classify(embedding))  # type: ignore[operator]
    assert bool(head.embed(torch.zeros(1, 6)).isnan().all())


def test_less_than_asked_for_is_refused_with_the_files_that_are_missing(headed: Path, bare: Path) -> None:
    for folder in (headed, bare):
        with pytest.raises(DataError, match=r"no version bundle, model\.safetensors missing"):
            training_task.opened(folder)
    with pytest.raises(DataError, match=r"no version bundle, head\.safetensors missing"):
        training_task.opened(bare, at_least=Completeness.HEAD)


def test_what_is_left_is_verified(headed: Path, bare: Path) -> None:
    data = bytearray((headed / bundle_files.HEAD).read_bytes())
    data[-1] ^= 1
    (headed / bundle_files.HEAD).write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=r"head\.safetensors: SHA-256 must be"):
        training_task.opened(headed, at_least=Completeness.HEAD)
    digest = bundle.recorded_digest(bare)
    path = bare / bundle_files.DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), "name": "v7"}))
    with pytest.raises(IntegrityError, match="SHA-256 must be"):
        training_task.opened(bare, expected_digest=digest, at_least=Completeness.NOTHING)


class Scaled(training_task.BlobNet):
    """Classifies with more than its head."""

    def __init__(self) -> None:
        super().__init__(2)
        self.scale = nn.Parameter(torch.ones(()))

    def classify(self, embedding: Tensor) -> Tensor:
        return self.scale * self.head(embedding)


def test_a_head_that_is_not_all_there_is_to_classifying_is_not_saved_apart(tmp_path: Path) -> None:
    network = Scaled()
    assert weights.head_of(network, embedding_size=8) is None
    assert bool(network.scale.isfinite())
    bundle.save(tmp_path, network=training_task.BlobNet(2), spec=parse("v1", classes=2), classes=("a", "b"))
    assert (tmp_path / bundle_files.HEAD).exists()
    bundle.save(tmp_path, network=network, spec=parse("v1", classes=2), classes=("a", "b"))
    assert not (tmp_path / bundle_files.HEAD).exists()
    assert json.loads((tmp_path / bundle_files.DESCRIPTION).read_text())["head_sha256"] is None


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_against_a_cache_without_weights_is_the_same_training(tmp_path: Path, old: Path, bare: Path) -> None:
    document = parse("v2", losses=FOCAL)
    whole = trained(document, tmp_path / "whole", old)
    assert whole.notes == ()
    shutil.copytree(tmp_path / "whole" / "targets", tmp_path / "bare" / "targets")
    left = trained(document, tmp_path / "bare", bare)
    assert left.notes == ("v1: its weights are gone, so its cached outputs were not compared with it",)
    assert sha256_file(left.result.weights) == sha256_file(whole.result.weights)


def test_influence_needs_the_head_alone(tmp_path: Path, old: Path, headed: Path) -> None:
    for losses in (HEAD_ALONE, [{"kind": "influence"}]):
        document = parse("v2", losses=losses, classes=2 if losses is not HEAD_ALONE else 3)
        whole, left = (
            trained(document, tmp_path / f"{losses is HEAD_ALONE}-{name}", folder)
            for name, folder in (("whole", old), ("left", headed))
        )
        assert sha256_file(left.result.weights) == sha256_file(whole.result.weights)


def test_prototypes_of_clean_outputs_stand_in_for_a_head(tmp_path: Path, old: Path, bare: Path) -> None:
    document = parse("v2", losses=FOCAL, targets=STALE)
    trained(document, tmp_path, old)
    row = trained(parse("v3", losses=[{"kind": "influence"}], targets=STALE), tmp_path, bare)
    assert row.result.steps == 10
    trace = [json.loads(line) for line in (tmp_path / "blobs-v3" / "metrics.jsonl").read_text().splitlines()]
    assert all(step["parts"]["influence/v1"] > 0.0 for step in trace if step["event"] == "step")


def test_without_a_cache_or_with_another_one_it_is_refused_before_a_step(
    tmp_path: Path, old: Path, bare: Path, headed: Path
) -> None:
    for folder, lost in ((bare, "its weights are gone"), (headed, "only its head is left")):
        with pytest.raises(DataError, match=rf"v1: {lost}, and .*targets has no outputs of it .* leave it out of"):
            trained(parse("v2", losses=FOCAL), tmp_path, folder)
    assert not list(tmp_path.glob("targets/*.partial"))
    trained(parse("v2", losses=FOCAL), tmp_path, old)
    with pytest.raises(DataError, match="has no outputs of it on these samples and views"):
        trained(parse("v3", losses=FOCAL, targets={"views": 3}), tmp_path, bare)
    assert not (tmp_path / "blobs-v3").exists()


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"losses": FOCAL, "targets": {"mode": "live"}}, "targets.mode: live runs it in every step"),
        ({"losses": HEAD_ALONE}, "influence reads its head"),
        ({"losses": [{"kind": "influence"}]}, "prototypes are made of its clean outputs"),
        ({"losses": FOCAL, "weighting": {"kind": "adaptive"}}, "a budget needs its answers on the constraint split"),
    ],
)
def test_what_cannot_be_had_of_it_is_one_line(tmp_path: Path, bare: Path, section: dict[str, Any], reason: str) -> None:
    with pytest.raises(SpecError) as raised:
        trained(parse("v2", **section), tmp_path, bare)
    message = raised.value.message
    assert message.startswith("compatibility: v1: its weights are gone, and ")
    assert reason in message
    assert message.endswith("or leave it out of compatibility.against, or restore blobs-v1 from a backup")
    assert not (tmp_path / "references").exists()


def test_eviction_spares_the_caches_that_nobody_can_build_again(tmp_path: Path, old: Path, bare: Path) -> None:
    trained(parse("v2", losses=FOCAL), tmp_path, old)
    (kept,) = (path.parent for path in tmp_path.glob("targets/*/meta.json"))
    os.utime(kept / "meta.json", (1, 1))
    small = {"views": 2, "limit_gb": 1e-6}
    assert trained(parse("v3", losses=FOCAL, targets=small), tmp_path, bare).notes
    assert kept.exists()


def test_an_ancestor_whose_code_is_not_trusted_is_trained_against_from_its_cached_outputs(tmp_path: Path) -> None:
    source = tmp_path / "wrapped.py"
    imports = "from graceful.spec import DigitsTask\nfrom graceful.tasks.digits import Digits\n"
    source.write_text(f"{imports}def task():\n    return Digits(DigitsTask())\n")
    digest = code.digest(str(source))
    document = {"model": "digits", "train": {**RECIPE, "batch_size": 128}, "task": {"kind": "digits"}}
    first = spec.parse({**document, "name": "v1", "task": {"kind": "python", "file": str(source)}})
    old = trained(first, tmp_path).folder
    owed = {"losses": FOCAL, "near_chance": None}
    for name, trusted in (("v2", [digest]), ("v3", [])):
        wanted = {**document, "name": name, "compatibility": owed, "trust": {"code_digests": trusted}}
        done = trained(spec.parse(wanted), tmp_path, old)
        source.write_text("raise SystemExit('the recorded code ran')")
    assert any("not here as it was saved, so its cached outputs were not compared with it" in one for one in done.notes)
    live = {**document, "name": "v4", "compatibility": {**owed, "targets": {"mode": "live"}}}
    with pytest.raises(SpecError, match=r"write keyed, if its outputs are cached; .* or restore that code and trust"):
        trained(spec.parse(live), tmp_path, old)
    gallery = {**owed, "losses": [{"kind": "embedding_regression", "encoder": "gallery"}]}
    with pytest.raises(SpecError, match="embedding_regression compares with its gallery encoder; write encoder: query"):
        trained(spec.parse({**live, "compatibility": gallery}), tmp_path, old)


# --- measuring --------------------------------------------------------------------------------------------------------


def bound(metric: str, **changes: Any) -> Constraint:
    return Constraint(**{"metric": metric, "direction": Direction.AT_MOST, "bound": 1.0, **changes})


def test_an_ancestor_that_cannot_be_run_is_said_not_to_be_measured_and_holds_the_version(old: Path, bare: Path) -> None:
    new = replace(training_task.opened(old), name="v3")
    chain = [replace(training_task.opened(old), name="v2"), training_task.opened(bare, at_least=Completeness.NOTHING)]
    document = parse("v3", classes=2)
    report = evaluate(document, new, chain, task=tasks.build(document.task)).report
    nearest, lost = report.comparisons
    assert [(one.against, one.distance) for one in report.comparisons] == [("v2", 1), ("v1", 2)]
    assert nearest.measurements["negative_flip_rate"].value == 0.0
    assert set(lost.measurements) == set(COMPARISON_METRICS)
    assert {one.value for one in lost.measurements.values()} == {None}
    assert "v1: its weights are gone, so nothing was measured against it" in report.notes
    assert type(report).from_json(report.to_json()) == report
    verdict = gate.judge(
        report, [bound("negative_flip_rate"), bound("relative_nfr"), bound("chain_max_nfr", against="self")]
    )
    assert verdict.outcome == "held"
    reasons = {(one.constraint.metric, one.against): (one.met, one.reason) for one in verdict.findings}
    assert reasons["negative_flip_rate", "v2"][0]
    why = "undefined: v1 cannot be run, its weights are gone"
    assert reasons["negative_flip_rate", "v1"] == (False, f"negative_flip_rate against v1: {why}")
    assert reasons["relative_nfr", "v1"][0] is False
    assert reasons["chain_max_nfr", "self"] == (False, f"chain_max_nfr: {why}")


@pytest.mark.parametrize("metric", [*COMPARISON_METRICS, *CHAIN_METRICS])
def test_no_constraint_passes_on_an_ancestor_that_was_not_measured(metric: str, alone_with_the_lost: Report) -> None:
    against = "self" if metric in CHAIN_METRICS else "latest"
    for direction, limit in ((Direction.AT_MOST, 1e9), (Direction.AT_LEAST, -1e9), (Direction.ABOVE, -1e9)):
        asked = bound(metric, direction=direction, bound=limit, against=against)
        assert gate.judge(alone_with_the_lost, [asked]).outcome == "held"


@pytest.fixture(scope="module")
def alone_with_the_lost(old: Path) -> Report:
    """The report of a version whose only ancestor cannot be run."""
    lost = replace(training_task.opened(old), completeness=Completeness.NOTHING)
    return evaluate(parse("v2", classes=2), replace(training_task.opened(old), name="v2"), [lost]).report
