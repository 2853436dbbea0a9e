"""What a search varies: derived from the spec, without scales that say the same twice, and back to a spec."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graceful import spec
from graceful.errors import SpecError
from graceful.programs.tuning import space
from graceful.programs.tuning.words import dry_run


def parsed(compatibility: dict[str, Any] | None = None, **tune: Any) -> spec.RefreshSpec:
    document = {"model": "m", "name": "v2", "task": {"kind": "digits"}, "compatibility": compatibility or {}}
    return spec.parse({**document, "tune": tune})


class Middle:
    """Answers with the lower end, and with the choice of that position."""

    def __init__(self, position: int) -> None:
        self.position, self.asked = position, list[str]()

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.asked.append(name)
        assert not log or low > 0.0
        return low

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.asked.append(name)
        return choices[self.position % len(choices)]


def names(wanted: spec.RefreshSpec) -> set[str]:
    return {one.name for one in space.parameters(wanted)}


def test_space_follows_from_the_losses_of_the_spec() -> None:
    bare = {"compare", "distillation", "displacement", "focus_share", "temperature", "margin", "runs", "reference"}
    assert names(parsed()) == bare
    more = {"losses": [{"kind": "influence"}, {"kind": "embedding_regression"}], "weighting": {"kind": "decay"}}
    assert names(parsed(more)) == bare | {"influence", "regression", "decay"}
    assert names(parsed(space={"against": ["latest", "all"]})) == bare | {"against"}
    assert names(parsed(space={"compare": ["displacement"], "runs": [0]})) == {
        "compare",
        "displacement",
        "margin",
        "runs",
    }


def test_adaptive_weighting_searches_the_step_in_place_of_the_weight() -> None:
    adaptive = {"losses": [{"kind": "focal_distillation"}], "weighting": {"kind": "adaptive"}}
    found = names(parsed(adaptive))
    assert "step" in found
    assert not {"distillation", "displacement"} & found
    point = space.draw(Middle(0), space.parameters(parsed(adaptive)))
    assert space.compatibility(parsed(adaptive), point).weighting.step == 0.1  # type: ignore[union-attr]


def test_low_temperatures_only_where_the_spec_permits_them() -> None:
    def values(loss: dict[str, Any]) -> str:
        found = space.parameters(parsed({"losses": [{"kind": "focal_distillation", **loss}]}))
        return str(next(one.domain for one in found if one.name == "temperature"))

    assert values({}) == "20, 100, lm"
    assert values({"allow_low_temperature": True}) == "2, 20, 100, lm"


def test_parameters_that_do_not_count_are_not_asked() -> None:
    wanted = parsed()
    first, last = Middle(0), Middle(1)
    assert "margin" not in space.draw(first, space.parameters(wanted))
    assert "reference" not in first.asked  # runs: 0
    assert {"margin", "displacement", "reference"} <= set(space.draw(last, space.parameters(wanted)))
    assert "temperature" not in last.asked


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3), st.floats(0.0, 1.0), st.booleans())
def test_every_point_is_a_valid_spec_and_comes_back(position: int, share: float, influence: bool) -> None:
    class Anywhere(Middle):
        def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
            return low + share * (high - low)

    losses = [{"kind": "influence"}] if influence else []
    wanted = parsed({"losses": losses})
    parameters = space.parameters(wanted)
    point = space.draw(Anywhere(position), parameters)
    chosen = wanted.model_copy(update={"compatibility": space.compatibility(wanted, point)})
    again = spec.parse(chosen.dump())
    assert again.compatibility == chosen.compatibility
    assert space.within(point, parameters) == point
    written = space.written(again)
    for name in ("compare", "runs", str(point["compare"])):
        assert written.get(name, 0) == pytest.approx(point[name]) if name != "compare" else written[name] == point[name]


def test_a_blend_is_searched_by_its_share_in_place_of_weights() -> None:
    wanted = parsed({"blend": {"runs": 2, "length": 3.0}, "losses": [{"kind": "influence"}]})
    assert names(wanted) == {"compare", "share", "influence", "runs"}
    point = space.draw(Middle(0), space.parameters(wanted))
    section = space.compatibility(wanted, {**point, "share": 0.3})
    assert section.blend == spec.Blend(runs=2, length=3.0, share=0.3)
    assert [loss.kind for loss in section.losses] == ["influence"]
    told = dry_run(wanted)
    assert told["first"] == []
    assert told["reference_runs"] == 2 * (1 + spec.Final().seeds)
    with pytest.raises(SpecError, match=r"must be null with compatibility\.blend, whose"):
        parsed({"blend": {}}, space={"compare": ["distillation"]})


def test_options_that_are_not_searched_stay_as_written() -> None:
    losses = [{"kind": "logit_displacement", "top_k": 5, "power": 1.0}, {"kind": "reweighting", "weight": 0.7}]
    wanted = parsed(
        {"losses": losses, "reference": {"runs": 2, "temperature": 4.0}, "near_chance": None},
        space={"compare": ["displacement"]},
    )
    point = space.draw(Middle(0), space.parameters(wanted))
    found = space.compatibility(wanted, point)
    displacement, reweighting = found.losses
    assert (displacement.top_k, displacement.power) == (5, 1.0)  # type: ignore[union-attr]
    assert reweighting.weight == 0.7
    assert found.near_chance is None
    assert found.reference is not None
    assert (found.reference.temperature, found.reference.runs) == (4.0, 1)


def test_search_begins_with_the_spec_as_written_and_lies_within_the_space() -> None:
    losses = [{"kind": "focal_distillation", "weight": 50.0, "temperature": 100.0}]
    wanted = parsed({"losses": losses}, space={"distillation": [0.1, 3.0]})
    parameters = space.parameters(wanted)
    first, *others = space.known_points(wanted, parameters)
    assert (first["compare"], first["distillation"], first["runs"]) == ("distillation", 3.0, 3)
    assert others
    assert all(space.within(point, parameters) == point for point in (first, *others))


def test_shares_of_the_old_weights_are_measured_after_every_training_and_not_drawn() -> None:
    started = {"model": "m", "name": "v2", "task": {"kind": "digits"}, "train": {"start": "latest"}}
    assert space.shares(parsed()) == ()
    assert space.shares(spec.parse(started)) == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    few = spec.parse({**started, "tune": {"space": {"interpolation": [0.3, 0.1, 0.3]}}})
    assert space.shares(few) == (0.1, 0.3)
    assert names(few) == names(parsed())
    assert dry_run(few)["space"]["interpolation"] == "0.1, 0.3 of every training"
    assert "interpolation" not in dry_run(parsed())["space"]
    point = space.draw(Middle(0), space.parameters(few))
    assert space.compatibility(few, point).interpolation == 0.0
    assert space.compatibility(few, {**point, "interpolation": 0.3}).interpolation == 0.3


def test_tune_section_changes_no_digest_of_a_refresh() -> None:
    assert parsed(trials=3).digest() == parsed(trials=9, space={"runs": [1]}).digest()


def test_dry_run_counts_every_training() -> None:
    told = dry_run(parsed(trials=10, space={"runs": [0, 3]}, final={"candidates": 2, "seeds": 4}))
    assert (told["trials"], told["reference_runs"], told["final_fits"]) == (10, 3 + 12, 8)
    assert told["trainings"] == 10 + 15 + 8
    assert told["space"]["reference"].endswith("where runs is 3")


@pytest.mark.parametrize(
    ("section", "line"),
    [
        (
            {"space": {"distillation": [3, 0.1]}},
            "tune.space.distillation in spec: must be [low, high] with low above 0",
        ),
        ({"space": {"distillation": [0, 1]}}, "tune.space.distillation in spec: must be [low, high] with low above 0"),
        ({"space": {"focus_share": [0, 0.95]}}, "tune.space.focus_share in spec: must not exceed 0.9, got 0.95"),
        ({"space": {"temprature": [20]}}, "tune.space.temprature in spec: unknown key, did you mean temperature?"),
        ({"final": {"seeds": 1}}, "tune.final.seeds in spec: must be an integer in [2, 32], got 1"),
        ({"error": "ref"}, "tune.error in spec: must be reference or a number in (0, 1), got 'ref'"),
        ({"confidence": 0.2}, "tune.confidence in spec: must be a number in [0.5, 1), got 0.2"),
    ],
)
def test_a_wrong_section_is_one_line_with_its_path(section: dict[str, Any], line: str) -> None:
    with pytest.raises(SpecError) as caught:
        parsed(**section)
    assert caught.value.message.startswith(line)
