"""When an epoch is at chance, and when epochs at chance are a collapse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graceful.training.collapse import PATIENCE, HeldOut


def held_out(wrong: int, n: int, classes: int) -> HeldOut:
    return HeldOut(wrong=wrong, n=n, classes=classes)


@pytest.mark.parametrize(
    ("classes", "n"),
    [(2, 1570), (3, 822), (1000, 72)],
    ids=["two classes", "three classes", "a thousand classes"],
)
def test_guessing_is_at_chance_once_there_are_samples_enough(classes: int, n: int) -> None:
    """On chance itself: 1 - 1/classes of n, to the nearest sample; with a third of the samples it cannot be told."""
    for number, expected in ((n, True), (n // 3, False)):
        assert held_out(round(number * (1 - 1 / classes)), number, classes).at_chance is expected


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("wrong", [0, 1])
def test_one_sample_shows_nothing(wrong: int, classes: int) -> None:
    assert not held_out(wrong, 1, classes).at_chance


def test_sixteen_of_24_wines_may_be_bad_luck() -> None:
    assert held_out(16, 24, 3).error > held_out(16, 24, 3).chance
    assert not held_out(16, 24, 3).at_chance


@pytest.mark.parametrize(
    ("wrong", "n", "classes", "expected"),
    [
        (3, 3, 2, False),  # Wilson's lower end: 3 / 6.84 = 0.439, chance begins at 0.475
        (4, 4, 2, True),  # 4 / 7.84 = 0.510
        (71, 71, 1000, False),  # 71 / 74.84 = 0.9487, chance begins at 0.94905
        (72, 72, 1000, True),  # 72 / 75.84 = 0.9493
    ],
)
def test_all_wrong_on_few_samples(wrong: int, n: int, classes: int, expected: bool) -> None:
    assert held_out(wrong, n, classes).at_chance is expected


@given(st.integers(1, 5000), st.floats(0.0, 1.0), st.integers(2, 1000))
def test_an_error_below_chance_is_never_at_chance(n: int, share: float, classes: int) -> None:
    found = held_out(round(share * n), n, classes)
    assert found.at_chance <= (found.error >= found.chance)


def test_a_single_class_has_no_chance() -> None:
    assert not held_out(0, 1000, 1).at_chance


def streaks(wrongs: list[int], *, excused: int = 0) -> list[int]:
    """Of epochs with 1000 samples of 4 classes, where chance begins at 0.7125."""
    found, streak, former = [], 0, 1.0
    for epoch, wrong in enumerate(wrongs):
        one = held_out(wrong, 1000, 4)
        streak = one.streak(streak, former_error=former, excused=epoch < excused)
        former = one.error
        found.append(streak)
    return found


def test_two_epochs_in_a_row_at_chance_are_a_collapse() -> None:
    assert streaks([750, 750]) == [1, PATIENCE]


def test_an_epoch_away_from_chance_begins_anew() -> None:
    assert streaks([750, 500, 750, 750]) == [1, 0, 1, 2]


def test_the_warm_up_does_not_count() -> None:
    assert streaks([750, 750, 750, 750], excused=2) == [0, 0, 1, 2]


def test_progress_of_one_percent_is_a_slow_start() -> None:
    assert streaks([820, 800, 780, 779]) == [1, 1, 1, 2]


def test_the_error_says_what_was_seen_and_what_to_change() -> None:
    error = held_out(585, 600, 40).collapsed(3)
    assert error.message == (
        "epoch 3: validation error is 0.975 (585 of 600), twice in a row at least 0.926, where chance begins for 40"
        " classes; lower train.optimizer.lr or the weights of losses"
    )
    assert error.facts == {"epoch": 3, "validation_error": 0.975}
