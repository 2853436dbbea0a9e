"""The constraint report and the matrix of versions: from what was measured to what people read."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from graceful import spec, tasks
from graceful.chain import Completeness, Predecessor, freeze
from graceful.chain.budgets import Standing, plan
from graceful.errors import SpecError
from graceful.gate import Outcome, Verdict
from graceful.learners import Classifier
from graceful.programs.evaluation.constraint_report import build
from graceful.programs.evaluation.matrix import chosen, matrix
from graceful.programs.preparation.contract_record import PROMISED, record
from graceful.report import Comparison, Measurement, Report
from graceful.training.driver import TrainingResult
from graceful.views.constraints import constraint_rows, constraint_table
from graceful.views.heat import matrix_page, matrix_tables
from graceful.views.report import render_report
from tests.support import training_task
from tests.support.runs import contract_of

N = 10_000


def comparison(name: str, distance: int, nfr: float, old_error: float) -> Comparison:
    rate = Measurement(value=nfr, lower=nfr / 2, upper=nfr * 2, count=round(nfr * N), n=N)
    measured = {
        "negative_flip_rate": rate,
        "relative_nfr": Measurement(value=0.1, n=N),
        "old_error_rate": Measurement(value=old_error, n=N),
    }
    return Comparison(against=name, model_id=f"m-{name}", distance=distance, measurements=measured)


def report() -> Report:
    return Report(
        model="blobs",
        version="v4",
        data={"test": "0" * 64},
        measurements={"error_rate": Measurement(value=0.11, n=N), "chain_max_nfr": Measurement(value=0.03, n=N)},
        comparisons=(comparison("v3", 1, 0.01, 0.12), comparison("v2", 2, 0.03, 0.13), comparison("v1", 3, 0.002, 0.4)),
    )


def trained() -> TrainingResult:
    rows = tuple(
        {
            "event": "epoch",
            "epoch": epoch,
            "validation_error": 0.1,
            "constraint_error": 0.12,
            "feasible": epoch == 2,
            "nfr": {"v3": 0.01, "v2": 0.02},
            "multipliers": {"v3": 1.0, "v2": 0.5 * (epoch - 1)},
            "conflict": {"focal_distillation/chain": 0.3},
        }
        for epoch in (1, 2, 3)
    )
    return TrainingResult(weights=Path("w"), history=rows, steps=3, seconds=1.0, validation_error=0.1, chosen_epoch=2)


@pytest.fixture
def promised(tmp_path: Path) -> Path:
    standings = [Standing(name=name, n=N, error=0.12, reference_error=0.1) for name in ("v3", "v2")]
    budgets = plan(standings, relative=0.2)
    record(tmp_path, contract_of(budgets), trained())
    return tmp_path


def test_every_ancestor_is_listed_with_its_budget_and_what_it_did(promised: Path) -> None:
    found = build(report(), promised)
    v3, v2, v1 = found["predecessors"]
    assert (v3["status"], v3["met"], v3["multiplier"], v3["multipliers"]) == ("active", True, 1.0, [1.0, 1.0, 1.0])
    assert (v2["met"], v2["multiplier"], v2["multipliers"]) == (False, 0.5, [0.0, 0.5, 1.0])
    assert (v1["status"], v1["budget"], v1["met"], v1["multipliers"]) == ("evaluated only", None, None, [None] * 3)
    assert found["cost"] == pytest.approx(0.02)
    assert found["conflict"] == {"focal_distillation/chain": 0.3}
    assert found["chain"]["chain_max_nfr"] == 0.03
    assert found["feasible"] is True
    json.dumps(found, allow_nan=False)


def test_advice_names_who_pulls_most_and_who_is_near_chance(promised: Path) -> None:
    first, second, third = build(report(), promised)["advice"]
    assert first.startswith("v3: multiplier 1.00 x budget 1.76 %, 67 % of the pull")
    assert first.endswith("dropping it would buy about 1.33 points of error"), "two thirds of the cost of 2 points"
    assert second.startswith("v2: ")
    assert third.startswith("v1: its error 40.00 % is over twice the latest predecessor's")


def implied_run(folder: Path) -> Path:
    """v2 and v1 follow from v3."""
    standings = [Standing(name=name, n=N, error=0.12, reference_error=0.1) for name in ("v3", "v2", "v1")]
    upper = {("v3", "v2"): 0.015, ("v3", "v1"): 0.02}
    budgets = plan(standings, relative=0.2, bounds={"v3": 0.02, "v2": 0.04, "v1": 0.05}, upper=upper)
    result = trained()
    rows = tuple({**row, "multipliers": {"v3": 1.0, "v2": 0.0, "v1": 0.0}} for row in result.history)
    record(
        folder,
        contract_of(budgets),
        replace(result, history=rows),
    )
    return folder


def test_advice_names_the_implied_budgets_that_come_back(tmp_path: Path) -> None:
    found = build(report(), implied_run(tmp_path))
    assert [one["implied_by"] for one in found["predecessors"]] == [None, "v3", "v3"]
    assert found["retirement"][0]["reactivates"] == ["v2", "v1"]
    assert found["advice"][0].endswith("would buy about 2.00 points of error and would reactivate v2, v1")


def test_a_run_without_budgets_still_has_a_report(tmp_path: Path) -> None:
    record(tmp_path, None, trained())
    assert not (tmp_path / PROMISED).exists()
    found = build(report(), tmp_path)
    assert found["cost"] is None
    assert {one["status"] for one in found["predecessors"]} == {"evaluated only"}


def test_where_no_constraint_acted_none_was_kept_and_none_cost_anything(tmp_path: Path) -> None:
    loose = plan([Standing(name="v3", n=N, error=0.12, reference_error=0.1)], relative=0.2, bounds={"v3": 0.9})
    record(tmp_path, contract_of(loose), trained())
    found = build(report(), tmp_path)
    assert found["predecessors"][0]["status"] == "vacuous"
    assert found["predecessors"][0]["cost"] is None
    assert constraint_rows(found)[1][-2:] == ("-", "-"), "no multiplier, so no trace of one"
    assert (found["cost"], found["feasible"], found["chosen_epoch"]) == (None, None, 2)


def test_people_read_the_same_in_the_terminal_and_on_the_page(promised: Path) -> None:
    found = build(report(), promised)
    rows = constraint_rows(found)
    assert [row[7:] for row in rows[1:]] == [("1.33", "1.00 1.00 1.00"), ("0.67", "0.00 0.50 1.00"), ("-", "-")]
    *costs, none = [one["cost"] for one in found["predecessors"]]
    assert (costs, none) == (pytest.approx([0.02 * 2 / 3, 0.02 / 3]), None)
    assert rows[2][:6] == ("v2", "3.00 [1.50, 6.00]", "10.00", "1.76", "active", "no")
    console = Console(file=io.StringIO(), width=160)
    console.print(constraint_table(found))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    page = render_report(report(), Verdict(outcome=Outcome.PASSED, findings=()), constraints=found)
    for shown in ("3.00 [1.50, 6.00]", "1.76", "+2.00 points of error"):
        assert shown in text
        assert shown in page
    free = render_report(
        report(), Verdict(outcome=Outcome.PASSED, findings=()), constraints=build(report(), promised / "x")
    )
    assert "Budgets" not in free


# --- the matrix -------------------------------------------------------------------------------------------------------


def version(seed: int, classes: tuple[str, ...]) -> Predecessor:
    torch.manual_seed(seed)
    task = training_task.task()
    return Predecessor(
        name=f"v{seed}",
        model_id=f"blobs-v{seed}",
        digest=f"{seed:064d}",
        classes=classes,
        embedding_size=8,
        network=freeze(training_task.BlobNet(len(classes))),
        learner=Classifier(task.transform),
        transform_digest="none",
    )


def document(**evaluate: Any) -> spec.RefreshSpec:
    section = {"kind": "python", "file": training_task.__file__}
    return spec.parse({"model": "blobs", "name": "v9", "task": section, "evaluate": evaluate})


def test_the_matrix_has_every_pair_and_the_triangle_of_flips() -> None:
    names = ("blob-0", "blob-1", "blob-2")
    versions = [version(1, names), version(2, names[:2]), version(3, names)]
    found = matrix(document(), tasks.build(document().task), versions)
    assert found["versions"] == ["v1", "v2", "v3"]
    nfr, recall = found["negative_flip_rate"], found["recall_at_1"]
    assert [[cell is None for cell in row] for row in nfr] == [[True] * 3, [False, True, True], [False, False, True]]
    assert all(0.0 <= cell <= 1.0 for row in recall for cell in row)
    own = matrix(document(), tasks.build(document().task), [versions[0], replace(versions[0], name="again")])
    assert own["negative_flip_rate"][1][0] == 0.0
    assert len({cell for row in own["recall_at_1"] for cell in row}) == 1
    assert own["summary_recall_at_1"]["average_compatibility"]["value"] == 0.0, "a tie is not compatible"
    assert [table.title for table in matrix_tables(found)] == [
        "R@1, query (row) on gallery (column)",
        "NFR, row against column",
        "R@1 in a few numbers",
    ]


def test_versions_of_a_matrix_are_chosen_by_name_or_refused() -> None:
    chain = [version(seed, ("blob-0", "blob-1")) for seed in (1, 2, 3)]
    assert chosen(chain, []) == chain
    assert [one.name for one in chosen(chain, ["v3", "v1"])] == ["v1", "v3"], "in the order of the chain"
    with pytest.raises(SpecError, match=r"--versions: 'v9' is not a version of this chain, which has v1, v2, v3"):
        chosen(chain, ["v1", "v9"])
    with pytest.raises(SpecError, match="needs at least two"):
        chosen(chain, ["v2"])


def test_a_version_that_cannot_be_run_leaves_cells_empty_never_zero() -> None:
    names = ("blob-0", "blob-1", "blob-2")
    versions = [version(1, names), replace(version(2, names), completeness=Completeness.HEAD), version(3, names)]
    found = matrix(document(), tasks.build(document().task), versions)
    assert found["versions"] == ["v1", "v2", "v3"]
    assert found["lost"] == {"v2": "only its head is left"}
    assert [[cell is None for cell in row] for row in found["recall_at_1"]] == [
        [False, True, False],
        [True] * 3,
        [False, True, False],
    ]
    assert found["compat_slice"] == [[8, None, 8], [None] * 3, [8, None, 8]]
    assert found["error"][1] is None
    average = found["summary_recall_at_1"]["average_compatibility"]
    assert (average["value"], average["reason"]) == (None, "2 of 3 pairs are missing")
    page = matrix_page(found, title="m")
    assert "v2 cannot be run, only its head is left" in page
    assert "- (2 of 3 pairs are missing)" in page
    assert page.count("not measured") == 5 + 5 + 2
    assert matrix_tables(found)


def test_without_retrieval_only_flips_are_in_the_matrix() -> None:
    names = ("blob-0", "blob-1", "blob-2")
    chosen = document(retrieval=False)
    found = matrix(chosen, tasks.build(chosen.task), [version(1, names), version(2, names)])
    assert "recall_at_1" not in found
    assert len(matrix_tables(found)) == 1
