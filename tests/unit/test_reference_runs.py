"""Finding the unconstrained runs of versions by their recipe: nothing is trained, nothing is guessed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from graceful.chain import Completeness, Predecessor
from graceful.models import bundle
from graceful.programs.evaluation.reference_runs import reference_runs_of
from graceful.programs.runs.run import Run
from tests.support import training_task
from tests.support.runs import train
from tests.unit.test_program_stages import constant, parse

DISTILLED = {
    "losses": [{"kind": "focal_distillation", "focus": "all"}],
    "reference": {"runs": 2},
    "targets": {"views": 1},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v1 was trained alone, v2 against it with two reference runs, v3 against v2 with none."""
    home = tmp_path_factory.mktemp("home")
    folders: list[Path] = []
    for name, section in (("v1", {}), ("v2", DISTILLED), ("v3", {**DISTILLED, "reference": None})):
        recipe = {"seed": 7} if name == "v3" else {}
        document = parse(name, compatibility=section, train=recipe)
        folders.insert(
            0, train(document, run_dir=home / "runs" / document.run_id, home=home, ancestors=folders[:1]).folder
        )
    return home


def run(home: Path) -> Run:
    return Run.of(parse("v3"), home=home)


def versions(home: Path) -> list[Predecessor]:
    return [training_task.opened(home / "runs" / f"blobs-{name}" / "model") for name in ("v3", "v2", "v1")]


def test_each_version_gets_the_runs_of_its_own_recipe(home: Path) -> None:
    chain = versions(home)
    found = reference_runs_of(run(home), chain)
    assert found["v1"].runs == (chain[2],), "trained without predecessors"
    assert found["v3"].runs == ()
    assert found["v3"].reason == "none here; compatibility.reference or adaptive weighting trains one"
    [reference] = found["v2"].runs
    assert reference.digest in {bundle.digest(path) for path in home.glob("references/*/model")}
    newest = reference_runs_of(run(home), chain[1:])["v2"]
    assert (len(newest.runs), newest.reason) == (2, "2 of its recipe, other seed"), "of the newest, all are asked"


def test_a_version_that_cannot_be_run_is_nobody_s_unconstrained_run(home: Path) -> None:
    lost = replace(versions(home)[2], completeness=Completeness.NOTHING)
    found = reference_runs_of(run(home), [lost])["v1"]
    assert (found.runs, found.reason) == ((), "it is one, but its weights are gone")


def test_a_run_that_is_not_here_or_is_damaged_says_so(home: Path, tmp_path: Path) -> None:
    alone = replace(constant("v1", 0), model="blobs")
    absent = reference_runs_of(run(tmp_path), [alone])["v1"]
    assert (absent.runs, absent.reason) == ((), "none known, run blobs-v1 is not in this home")
    broken = tmp_path / "runs" / "blobs-v1" / "spec.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{}")
    (broken.parent / "model").mkdir()
    (broken.parent / "model" / "arch.json").write_text("{}")
    assert reference_runs_of(run(tmp_path), [alone])["v1"].reason.startswith("cannot be read")


def test_an_ancestor_of_a_branch_is_looked_up_under_its_own_model_and_by_its_digest(home: Path) -> None:
    [_, v2, v1] = versions(home)
    assert v1.model == "blobs"
    branch = replace(v2, name="e1", model="blobs-edge")
    found = reference_runs_of(run(home), [branch, v2, v1])
    assert found["v1"].runs == (v1,)
    assert len(found["v2"].runs) == 1
    assert found["e1"].reason == "none known, run blobs-edge-e1 is not in this home"
    other = reference_runs_of(run(home), [replace(v1, digest="0" * 64)])["v1"]
    assert (other.runs, other.reason) == ((), "none known, run blobs-v1 of this home trained another version")
