"""What people read of a release: worst flips, slices, pictures, heat maps, curves, what retiring would buy."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from graceful import tasks
from graceful.gate import Outcome, Verdict
from graceful.metrics.inputs import VersionOutputs
from graceful.metrics.predictions import Predictions
from graceful.programs.evaluation import background
from graceful.programs.evaluation.constraint_report import build
from graceful.programs.evaluation.evaluate import evaluate
from graceful.programs.evaluation.reference_runs import ReferenceRuns
from graceful.programs.evaluation.slices import most_flipped
from graceful.programs.outputs import flipped
from graceful.programs.outputs.flipped import negative_flips, pictures
from graceful.programs.outputs.model_outputs import Evaluated
from graceful.programs.preparation.contract_record import PROMISED
from graceful.report import Comparison, Measurement, Report
from graceful.spec import RefreshSpec
from graceful.tasks.base import Samples
from graceful.views import curves, heat
from graceful.views.constraints import reference_sentence, remarks
from graceful.views.rendering import render
from graceful.views.report import render_report
from tests.unit.test_program_stages import constant, parse

PASSED = Verdict(outcome=Outcome.PASSED, findings=())


def predictions(
    labels: list[str], predicted: list[str], *, groups: list[str] | None = None, truth: list[float] | None = None
) -> Predictions:
    sure = None if truth is None else np.array([max(one, 1.0 - one) for one in truth])
    return Predictions(
        ids=np.array([f"i{row:04d}" for row in range(len(labels))]),
        labels=np.array(labels),
        predicted=np.array(predicted),
        groups=None if groups is None else np.array(groups),
        confidence=sure,
        label_confidence=None if truth is None else np.array(truth),
    )


def test_the_worst_flip_is_the_one_that_lost_most_probability() -> None:
    """i0 was barely right and is now surely wrong: it lost 0.5; i2 was sure and lost 0.9; i1 is not a flip."""
    old = predictions(["a", "a", "b"], ["a", "b", "b"], truth=[0.51, 0.3, 0.99])
    new = predictions(["a", "a", "b"], ["b", "b", "a"], truth=[0.01, 0.0, 0.09])
    first, second = negative_flips(new, old, against="v1")
    assert [first.id, second.id] == ["i0002", "i0000"]
    assert [first.severity, second.severity] == pytest.approx([0.9, 0.5])
    assert (first.label, first.predicted, second.confidence) == ("b", "a", pytest.approx(0.99))


def test_flips_without_probabilities_are_still_listed() -> None:
    old, new = predictions(["a", "b"], ["a", "b"]), predictions(["a", "b"], ["b", "a"])
    assert [(flip.id, flip.severity) for flip in negative_flips(new, old, against="v1")] == [
        ("i0000", 0.0),
        ("i0001", 0.0),
    ]


def images(count: int) -> Samples:
    rng = np.random.default_rng(0)
    items = rng.integers(0, 256, size=(count, 40, 40), dtype=np.uint8)
    ids = np.array([f"i{row:04d}" for row in range(count)])
    return Samples.of(items, np.zeros(count, dtype=np.int64), classes=("a",), ids=ids)


def test_pictures_stay_within_their_room_and_the_worst_keep_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = predictions(["a"] * 20, ["a"] * 20), predictions(["a"] * 20, ["b"] * 20)
    flips = negative_flips(new, old, against="v1")
    found = pictures(flips, images(20))
    assert len(found) == 20
    one = len(found["i0000"])
    monkeypatch.setattr(flipped, "ROOM", int(3.5 * one))
    few = pictures(flips, images(20))
    assert sum(map(len, few.values())) <= 3.5 * one
    assert list(few) == ["i0000", "i0001", "i0002"]
    drawn = Image.open(io.BytesIO(base64.b64decode(found["i0000"].partition(",")[2])))
    assert (drawn.size, drawn.mode) == ((56, 56), "L")


def test_a_slice_of_three_ids_does_not_lead_the_list() -> None:
    """Class a: 60 of 200 flip. Class b: 1 of 3. Class c: none of 100."""
    labels = ["a"] * 200 + ["b"] * 3 + ["c"] * 100
    wrong = [row < 60 or row == 200 for row in range(303)]
    new = predictions(labels, ["x" if bad else label for bad, label in zip(wrong, labels, strict=True)])
    first, second = most_flipped(new, predictions(labels, labels), against="v1", draws=100, seed=0)
    assert (first.name, first.count, first.n, first.small) == ("a", 60, 200, False)
    assert (second.name, second.count, second.n, second.small) == ("b", 1, 3, True)
    assert second.nfr > first.nfr
    assert 0.0 < second.lower < first.lower < first.nfr < first.upper


def test_groups_are_slices_of_their_own_and_names_survive_left_out_ids() -> None:
    labels = ["new"] * 5 + ["a"] * 40 + ["b"] * 40
    groups = [f"face{row % 4}" for row in range(85)]
    wrong = [group == "face1" for group in groups]
    new = predictions(labels, ["x" if bad else label for bad, label in zip(wrong, labels, strict=True)], groups=groups)
    said = predictions(labels, labels, groups=groups)
    old = Predictions(
        ids=said.ids, labels=said.labels, predicted=said.predicted, classes=("a", "b"), groups=said.groups
    )
    found = most_flipped(new, old, against="v1", draws=100, seed=0)
    assert (found[0].kind, found[0].name, found[0].nfr) == ("group", "face1", 1.0)
    assert {one.name for one in found if one.kind == "class"} == {"a", "b"}
    assert sum(one.count for one in found if one.kind == "class") == sum(wrong[5:])


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_cells_are_readable_darker_for_more_and_missing_ones_say_so() -> None:
    names = ["v1", "v2"]
    matrix = heat.heat("R@1", names, [[0.5, None], [0.7, 0.9]], signs={(1, 0): "\u2713"})
    assert [[cell.text if cell else "" for cell in row] for row in matrix.rows] == [
        ["50.0", ""],
        ["70.0 \u2713", "90.0"],
    ]
    assert [[cell.missing if cell else None for cell in row] for row in matrix.rows] == [[False, True], [False, False]]
    assert heat.heat("NFR", names, [[0.1, 0.1], [0.2, 0.1]], triangle=True).rows[0] == [None, None]
    shades = [sum(heat.colour(share)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert shades == sorted(shades, reverse=True)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.45, 0.5, 0.55, 0.7, 1.0])
def test_ink_has_the_contrast_that_accessibility_asks_for(share: float) -> None:
    cell = heat._cell(share, low=0.0, high=1.0, sign="")
    levels = [
        heat._luminance(tuple(int(code[i : i + 2], 16) for i in (1, 3, 5)))  # type: ignore[arg-type]
        for code in (cell.ground, cell.ink + cell.ink[1:])
    ]
    assert (max(levels) + 0.05) / (min(levels) + 0.05) >= 4.5


def test_signs_say_better_tie_and_worse_than_the_gallery_s_own_version() -> None:
    cells = [[0.5, 0.6, 0.7], [0.5, 0.6, 0.6], [0.51, 0.59, 0.8]]
    assert heat._signs(cells) == {(1, 0): "=", (2, 0): "\u2713", (2, 1): "\u2717"}
    assert heat._signs([[None, 0.1], [0.2, 0.3]]) == {}


@pytest.mark.parametrize("chosen", [1, 2, 3])
def test_the_chosen_epoch_is_a_circle_on_the_line(chosen: int) -> None:
    drawn = curves.panel([0.5, 2.0, 1.0], title="multiplier", bound=None, chosen=chosen, x=0)
    assert drawn.chosen == drawn.points[chosen - 1]
    heights = [y for _, y in drawn.points]
    assert heights[1] < heights[2] < heights[0], "pixels grow downwards"


class Parsed(HTMLParser):
    """What a page holds; every opened element is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if self.open:
            assert self.open.pop() == tag


def release(tmp_path: Path) -> tuple[Report, dict[str, Any]]:
    """A report against v2 and v1, of which v2 has a budget that was paid for."""
    rate = Measurement(value=0.02, lower=0.01, upper=0.03, count=20, n=1000)
    measured = {"negative_flip_rate": rate, "old_error_rate": Measurement(value=0.1, n=1000)}
    report = Report(
        model="m",
        version="v3",
        data={},
        measurements={"error_rate": Measurement(value=0.1, n=1000)},
        comparisons=tuple(
            Comparison(against=name, model_id=name, distance=distance, measurements=measured)
            for distance, name in enumerate(("v2", "v1"), start=1)
        ),
    )
    rows = [
        {
            "epoch": epoch,
            "constraint_error": 0.09,
            "validation_error": 0.1,
            "feasible": True,
            "nfr": {"v2": 0.05 / epoch, "v1": 0.04},
            "multipliers": {"v2": 0.5 * epoch, "v1": 0.5},
            "conflict": {"focal_distillation/chain": 0.25},
        }
        for epoch in (1, 2, 3)
    ]
    budget = {"bound": 0.01, "status": "active", "reason": "at most 1.00 % of 1000 ids may flip"}
    budgets = [{"name": name, **budget} for name in ("v2", "v1")]
    document = {"reference_error": 0.07, "budgets": budgets, "epochs": rows, "chosen_epoch": 3}
    (tmp_path / PROMISED).write_text(json.dumps(document), encoding="utf-8")
    around = {
        "matrix": {
            "versions": ["v1", "v2", "v3"],
            "error": [0.2, 0.15, 0.1],
            "negative_flip_rate": [[None] * 3, [0.02, None, None], [0.03, 0.02, None]],
            "left_out": 2,
        },
        "slices": [
            {"against": name, "kind": "class", "name": "<O>", "nfr": 0.2, "lower": 0.1, "upper": 0.4, "count": 4,
             "n": 20, "small": True}
            for name in ("v2", "v1")
        ],
        "unconstrained": {"runs": 2, "error": 0.075, "nfr": {"v2": 0.031}, "seed_floor": 0.012, "reason": "two"},
        "compat_slice": {"v2": 48, "v1": 32},
    }  # fmt: skip
    return report, build(report, tmp_path, around)


def test_retiring_gives_back_each_predecessor_s_share_of_the_measured_cost(tmp_path: Path) -> None:
    """Multipliers 1.5 and 0.5 at equal budgets: three quarters and one quarter of 2 points."""
    _, found = release(tmp_path)
    assert [(row["name"], row["share"]) for row in found["retirement"]] == [("v2", 0.75), ("v1", 0.25)]
    assert [row["error_gain"] for row in found["retirement"]] == pytest.approx([0.015, 0.005])
    assert [one["untreated_nfr"] for one in found["predecessors"]] == [0.031, None]
    assert [one["compat_slice"] for one in found["predecessors"]] == [48, 32]


def test_the_terminal_says_it_in_a_few_lines(tmp_path: Path) -> None:
    _, found = release(tmp_path)
    *_, alone, slices = remarks(found)
    assert alone == "without constraints: error 7.50 %, 1.20 % flips between two seeds"
    assert slices == "most flipped against v2: class <O> 20.00 % of 20"
    free = found_for(
        parse("v3"), references={"v2": ReferenceRuns(runs=(constant("run", 1),), reason="1 of its recipe")}
    )
    [*_, last] = remarks(found | free)
    assert last.startswith("average compatibility, R@1: ")
    assert last.endswith("against old versions, - (2 of 3 pairs are missing) against unconstrained ones")


def test_constraints_that_cost_nothing_are_worth_nothing_to_drop(tmp_path: Path) -> None:
    report, _ = release(tmp_path)
    path = tmp_path / PROMISED
    document = json.loads(path.read_text()) | {"reference_error": 0.2}
    path.write_text(json.dumps(document))
    found = build(report, tmp_path)
    assert [row["error_gain"] for row in found["retirement"]] == [0.0, 0.0]
    assert found["advice"][0].endswith("dropping it would buy no error, the constraints cost none")


def test_the_page_shows_everything_without_scripts_or_network(tmp_path: Path) -> None:
    report, found = release(tmp_path)
    page = render_report(report, PASSED, constraints=found)
    for shown in (
        "+2.00 points of error",
        "Conflict index of focal_distillation/chain: 0.25",
        "Seed floor: 1.20 % flips between two such runs",
        "class &lt;O&gt;",
        "fewer than 100 ids",
        "2 older versions are not shown",
        "budget 1.00",
        "epoch 3 was chosen",
        "v2: NFR on the constraint split 5.00 to 1.67 %, budget 1.00 % (active); multiplier 0.50 to 1.50",
    ):
        assert shown in page, shown
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=.(?!data:)", page)
    parser = Parsed()
    parser.feed(page)
    assert parser.open == []


HOSTILE = "</title></text><script>alert('1')</script>\" onload='x' {{ 7 * 7 }} {% raw %} & <O>"


def test_hostile_names_are_shown_and_never_obeyed(tmp_path: Path) -> None:
    report, document = release(tmp_path)
    report = replace(report, model=HOSTILE, notes=(HOSTILE,), data={HOSTILE: "0" * 64})
    for predecessor in document["predecessors"]:
        predecessor["name"] = predecessor["reason"] = HOSTILE
    document["matrix"]["versions"] = [HOSTILE] * 3
    flip = flipped.Flip(
        id=HOSTILE, against=HOSTILE, label=HOSTILE, predicted=HOSTILE, confidence=0.9, severity=0.5, group=HOSTILE
    )
    page = render_report(report, PASSED, flips=[flip], pictures={HOSTILE: "data:,"}, constraints=document)
    parser = Parsed()
    parser.feed(page)
    assert parser.open == []
    assert "script" not in parser.tags
    assert "onload" not in parser.attributes
    assert parser.text.count(HOSTILE) == parser.text.count("{{ 7 * 7 }}") > 10
    assert "49" not in parser.text


def test_a_value_that_a_template_misses_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'run_id' is undefined"):
        render("search.html.j2", conclusion=[], pictures=[])


# --- what is gathered -------------------------------------------------------------------------------------------------


def found_for(document: RefreshSpec, **changes: Any) -> dict[str, Any]:
    chain = [constant("v2", 1), constant("v1", 0)]
    return evaluate(document, constant("v3", 0), chain, **changes).background


def test_unconstrained_runs_show_what_would_flip_and_what_the_seed_flips() -> None:
    """v2 always says 1, v1 always 0; the runs say 2 and 1: each is wrong on all that v1 has right."""
    free = {
        "v3": ReferenceRuns(runs=(constant("run-1", 2), constant("run-2", 1)), reason="2 of its recipe"),
        "v1": ReferenceRuns(runs=(constant("v1", 0),), reason="it is one"),
    }
    found = found_for(parse("v3"), references=free)
    alone = found["unconstrained"]
    assert (alone["runs"], alone["error"]) == (2, pytest.approx(2 / 3))
    assert alone["nfr"] == {"v2": pytest.approx(1 / 6), "v1": pytest.approx(1 / 3)}
    assert alone["seed_floor"] == pytest.approx(1 / 3)
    assert found["matrix"]["versions"] == ["v1", "v2", "v3"]
    assert found["matrix"]["unconstrained"] == {"v1": "it is one", "v2": "not looked for", "v3": "2 of its recipe"}
    own, missing, _ = found["matrix"]["independent"]["recall_at_1"]
    assert own == found["matrix"]["recall_at_1"][0][0]
    assert missing is None
    assert {one["against"] for one in found["slices"]} == {"v2"}
    json.dumps(found, allow_nan=False)


def test_one_run_has_no_seed_floor_and_says_what_would_give_it() -> None:
    found = found_for(
        parse("v3"), references={"v3": ReferenceRuns(runs=(constant("run-1", 2),), reason="1 of its recipe")}
    )
    assert found["unconstrained"]["seed_floor"] is None
    assert "compatibility.reference.runs: 2" in found["unconstrained"]["reason"]


def test_a_version_that_is_its_own_unconstrained_run_has_no_second_one_to_compare_with() -> None:
    found = found_for(parse("v3"), references={"v3": ReferenceRuns(runs=(constant("v3", 0),), reason="it is one")})
    alone = found["unconstrained"]
    assert (alone["runs"], alone["error"], alone["seed_floor"], alone["nfr"]) == (0, None, None, {})
    assert found["matrix"]["independent"]["recall_at_1"][2] == found["matrix"]["recall_at_1"][2][2]
    assert reference_sentence(alone) == "Unconstrained run of this version: it is one."


def test_without_retrieval_there_are_flips_alone() -> None:
    found = found_for(parse("v3", evaluate={"retrieval": False}))
    assert "recall_at_1" not in found["matrix"]
    assert found["matrix"]["negative_flip_rate"][2][1] == pytest.approx(1 / 3)
    assert found["compat_slice"] == {}


def test_a_long_chain_is_cut_to_what_a_refresh_has_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = Evaluated.of(tasks.build(parse("v1").task), with_retrieval=True)
    assert background._newest_count(samples) == background.WIDEST
    monkeypatch.setattr(background, "CELLS", 9 * len(samples.test) ** 2)
    assert background._newest_count(samples) == 3
    monkeypatch.setattr(background, "CELLS", 1)
    assert background._newest_count(samples) == 2
    found = found_for(parse("v3"))
    assert (found["matrix"]["versions"], found["matrix"]["left_out"]) == (["v2", "v3"], 1)


def test_a_voice_without_embeddings_has_no_matrix_of_retrieval() -> None:
    said = predictions(["a", "b"], ["a", "b"])
    found = background.pairs([VersionOutputs(name="v1", predictions=said), VersionOutputs(name="v2", predictions=said)])
    assert sorted(found) == ["error", "negative_flip_rate", "versions"]
