"""Following objects through everything that breaks a watch: every change once, no hang, no lost end."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pytest

from graceful.errors import InfrastructureError
from graceful.launch.kubernetes import wait
from graceful.launch.kubernetes.kube import Listing, WatchEvent
from graceful.launch.kubernetes.wait import Change, ChangeKind
from graceful.launch.refusals import ApiError, ForbiddenError, GoneError, ThrottledError, UnreachableError
from graceful.patience import LONGEST_RETRY_AFTER, Patience


@dataclass
class Clock:
    """Time that passes only while a caller waits."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def patience(self, **fields: Any) -> Patience:
        return Patience(now=lambda: self.now, sleep=self.sleep, random=lambda: 1.0, **fields)


def thing(version: int, uid: str = "a", **fields: Any) -> dict[str, Any]:
    return {"metadata": {"name": uid, "uid": uid, "resourceVersion": str(version)}, **fields}


def event(kind: str, version: int, uid: str = "a") -> WatchEvent:
    return WatchEvent(type=kind, object=thing(version, uid))


@dataclass
class Scripted:
    """Plays one step per request: a listing, the events of a watch, or an error (after events, if it ends a list)."""

    clock: Clock
    steps: list[Any]
    asked: list[str] = field(default_factory=list)

    def list(self, kind: str, *, selector: str = "", fields: str = "") -> Listing:
        self.asked.append("list")
        step = self._next()
        if isinstance(step, Exception):
            raise step
        assert isinstance(step, Listing)
        return step

    def watch(
        self, kind: str, *, resource_version: str, seconds: float, selector: str = "", fields: str = ""
    ) -> Iterator[WatchEvent]:
        self.asked.append(f"watch {resource_version}")
        for step in self._next():
            if isinstance(step, Exception):
                raise step
            yield step
        self.clock.now += seconds

    def _next(self) -> Any:
        assert self.steps, f"asked once more than expected: {self.asked}"
        return self.steps.pop(0)


def listing(version: int, *items: dict[str, Any]) -> Listing:
    return Listing(items=items, resource_version=str(version))


def played(*steps: Any, count: int, **options: Any) -> tuple[list[tuple[ChangeKind, str]], Scripted]:
    """The first changes, and the source, after so many steps."""
    clock = Clock()
    source = Scripted(clock, list(steps))
    found = list(islice(wait.changes(source, "RayJob", patience=clock.patience(), **options), count))
    return [(change.kind, version(change)) for change in found], source


def version(change: Change) -> str:
    return str(change.object["metadata"]["resourceVersion"]) if change.object else ""


def test_what_is_there_comes_first_and_changes_follow() -> None:
    found, source = played(listing(5, thing(3)), [event("MODIFIED", 6), event("DELETED", 7)], count=3)
    assert found == [(ChangeKind.ADDED, "3"), (ChangeKind.CHANGED, "6"), (ChangeKind.GONE, "7")]
    assert source.asked == ["list", "watch 5"]


def test_a_watch_goes_on_where_the_last_one_ended_even_if_that_was_a_bookmark() -> None:
    found, source = played(listing(5), [event("BOOKMARK", 90)], [event("ADDED", 95)], count=2)
    assert found == [(ChangeKind.QUIET, ""), (ChangeKind.ADDED, "95")]
    assert source.asked == ["list", "watch 5", "watch 90"]


def test_after_410_it_lists_again_and_tells_each_change_once() -> None:
    found, source = played(
        listing(5, thing(3)),
        [event("MODIFIED", 6), GoneError("too old")],
        listing(9, thing(6), thing(8, "b")),
        [event("MODIFIED", 10)],
        count=4,
    )
    assert found == [
        (ChangeKind.ADDED, "3"),
        (ChangeKind.CHANGED, "6"),
        (ChangeKind.ADDED, "8"),
        (ChangeKind.CHANGED, "10"),
    ]
    assert source.asked == ["list", "watch 5", "list", "watch 9"]


def test_what_vanished_between_two_lists_is_gone() -> None:
    found, _ = played(listing(5, thing(3)), [GoneError("too old")], listing(9, thing(8, "b")), count=3)
    assert found == [(ChangeKind.ADDED, "3"), (ChangeKind.GONE, "3"), (ChangeKind.ADDED, "8")]


def test_an_object_made_anew_under_the_same_name_is_another_one() -> None:
    again = {"metadata": {"name": "a", "uid": "a2", "resourceVersion": "8"}}
    found, _ = played(listing(5, thing(3)), [GoneError("x")], listing(9, again), count=3)
    assert found == [(ChangeKind.ADDED, "3"), (ChangeKind.GONE, "3"), (ChangeKind.ADDED, "8")]


@pytest.mark.parametrize(
    "error",
    [
        UnreachableError("cut"),
        ThrottledError("busy"),
        ApiError("broken", {"code": 500}),
        ApiError("no upstream", {"code": 503}),
    ],
)
def test_what_passes_is_waited_for_and_the_watch_resumes_without_a_new_list(error: ApiError) -> None:
    found, source = played(listing(5), [event("ADDED", 6), error], [error], [event("MODIFIED", 7)], count=2)
    assert found == [(ChangeKind.ADDED, "6"), (ChangeKind.CHANGED, "7")]
    assert source.asked == ["list", "watch 5", "watch 6", "watch 6"]
    assert source.clock.slept == [0.2, 0.4]


def test_a_list_that_fails_is_asked_again() -> None:
    found, source = played(ApiError("x", {"code": 500}), UnreachableError("y"), listing(5, thing(3)), count=1)
    assert found == [(ChangeKind.ADDED, "3")]
    assert source.asked == ["list"] * 3


def test_what_does_not_pass_is_raised_at_once() -> None:
    with pytest.raises(ForbiddenError):
        played(listing(5), [ForbiddenError("no")], count=1)


def test_it_gives_up_after_failing_for_too_long() -> None:
    errors = [[UnreachableError("down")] for _ in range(100)]
    with pytest.raises(UnreachableError):
        played(listing(5), *errors, count=1, give_up=60.0)


def test_the_overall_deadline_ends_a_quiet_and_a_chatty_watch() -> None:
    quiet: list[Any] = [[] for _ in range(5)]
    with pytest.raises(InfrastructureError, match="not over after 100 s"):
        played(listing(5), *quiet, count=99, seconds=100.0)


def test_trouble_is_told_once_per_row_of_failures() -> None:
    told: list[ApiError] = []
    lost = UnreachableError("cut")
    played(listing(5), [lost], [lost], [event("ADDED", 6), lost], [event("MODIFIED", 7)], count=2, warn=told.append)
    assert len(told) == 2


def test_pauses_double_stay_bounded_and_respect_what_the_server_asks() -> None:
    clock = Clock()
    patience = clock.patience(first=1.0, longest=5.0)
    assert [patience.pause(failures) for failures in (1, 2, 3, 4, 9999)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert patience.pause(1, ThrottledError("busy", {"retry_after": 20.0})) == 20.0
    assert patience.pause(1, ThrottledError("busy", {"retry_after": 9999.0})) == LONGEST_RETRY_AFTER
    lazy = Patience(first=1.0, sleep=clock.sleep, random=lambda: 0.0)
    assert lazy.pause(1) == 0.5


def chaotic(seed: int, states: int) -> tuple[Callable[[], Scripted], list[str]]:
    """A source that fails at random over one object's states 1..n."""
    draw = random.Random(seed)
    clock = Clock()

    @dataclass
    class Chaos(Scripted):
        at: int = 1

        def list(self, kind: str, *, selector: str = "", fields: str = "") -> Listing:
            if draw.random() < 0.3:
                raise draw.choice([UnreachableError("cut"), ApiError("x", {"code": 500}), ThrottledError("busy")])
            return listing(self.at, thing(self.at))

        def watch(
            self, kind: str, *, resource_version: str, seconds: float, selector: str = "", fields: str = ""
        ) -> Iterator[WatchEvent]:
            since = int(resource_version)
            while True:
                if draw.random() < 0.4:
                    raise draw.choice([GoneError("old"), UnreachableError("cut"), ApiError("x", {"code": 503})])
                self.at = min(states, self.at + draw.choice([0, 1, 2]))
                while since < self.at:
                    since += 1
                    yield event("MODIFIED", since)
                if draw.random() < 0.2:
                    return

    return lambda: Chaos(clock, []), [str(number) for number in range(1, states + 1)]


@pytest.mark.parametrize("seed", range(40))
def test_in_any_storm_states_come_in_order_once_and_the_last_one_always(seed: int) -> None:
    source, states = chaotic(seed, 9)
    seen: list[str] = []
    clock = Clock()
    for change in wait.changes(source(), "RayJob", patience=clock.patience()):
        if change.kind is not ChangeKind.QUIET:
            seen.append(version(change))
        if seen and seen[-1] == states[-1]:
            break
    assert seen == sorted(set(seen), key=int)
    assert seen[-1] == states[-1]
