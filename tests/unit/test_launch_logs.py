"""The log of a run as one stream: each line once, across cuts, new pods and deleted jobs. No sockets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from graceful.launch.kuberay import logs
from graceful.launch.kuberay.logs import Cursor
from graceful.launch.kubernetes.kube import Kube, Listing
from graceful.launch.refusals import ApiError, ForbiddenError, InvalidObjectError, NotFoundError, UnreachableError
from graceful.patience import Patience
from tests.support.kuberay_sequences import rayjob

Json = dict[str, Any]
CUT = UnreachableError("cut")
SILENT = UnreachableError("nothing for a minute", {"silent": True})
LINES = [f"2026-11-22T13:00:0{second}.5Z line {second}" for second in range(6)]


def pod(name: str, phase: str = "Running") -> Json:
    labels = {"graceful.dev/role": "submitter"}
    return {
        "metadata": {"name": name, "uid": name, "labels": labels, "creationTimestamp": name},
        "status": {"phase": phase},
    }


def job(deployment: str = "Running", **fields: Any) -> Json:
    return {**rayjob("job"), "status": {"jobDeploymentStatus": deployment, "jobStatus": "RUNNING", **fields}}


DONE = job("Complete", jobStatus="SUCCEEDED")


@dataclass
class Played:
    """Answers each kind of question from a list; the last answer stays."""

    jobs: list[Any]
    pods: list[Any]
    streams: list[list[Any]]
    asked: list[datetime | None] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)

    def get(self, kind: str, name: str) -> Json:
        return self._answer(self.jobs)

    def list(self, kind: str, *, selector: str = "") -> Listing:
        return Listing(items=tuple(self._answer(self.pods)), resource_version="1")

    def pod_logs(self, name: str, *, container: str, follow: bool, since: datetime | None) -> Iterator[str]:
        self.asked.append(since)
        for line in self.streams.pop(0) if self.streams else ():
            if isinstance(line, Exception):
                raise line
            yield line if line.endswith("half") else f"{line}\n"

    def _answer(self, answers: list[Any]) -> Any:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def read(played: Played, **options: Any) -> list[str]:
    patience = Patience(sleep=played.slept.append, random=lambda: 1.0)
    kube: Kube = played  # type: ignore[assignment]
    return list(logs.lines(kube, "job", patience=patience, **options))


def numbered(*numbers: int) -> list[str]:
    return [f"line {number}" for number in numbers]


def test_without_following_the_log_is_read_once() -> None:
    played = Played([DONE], [[pod("a", "Succeeded")]], [LINES])
    assert read(played) == numbered(0, 1, 2, 3, 4, 5)
    assert played.slept == []


def test_after_a_cut_the_log_goes_on_at_the_second_and_no_line_comes_twice() -> None:
    played = Played([DONE], [[pod("a")], [pod("a", "Succeeded")]], [[*LINES[:3], CUT], LINES[2:], []])
    assert read(played, follow=True) == numbered(0, 1, 2, 3, 4, 5)
    assert played.asked[:2] == [None, datetime(2026, 11, 22, 13, 0, 2, tzinfo=UTC)]


def test_lines_of_one_instant_are_told_apart_by_count() -> None:
    same = ["2026-11-22T13:00:00.5Z x", "2026-11-22T13:00:00.5Z x", "2026-11-22T13:00:00.5Z y"]
    played = Played([DONE], [[pod("a")], [pod("a", "Succeeded")]], [[*same[:2], CUT], [*same, same[0]], []])
    assert read(played, follow=True) == ["x", "x", "y", "x"]


def test_timestamps_without_trailing_zeros_keep_their_order() -> None:
    cursor = Cursor()
    assert cursor.new("2026-11-22T13:00:00.12Z a") == "a"
    cursor.reopened()
    assert cursor.new("2026-11-22T13:00:00.119999Z before") is None
    assert cursor.new("2026-11-22T13:00:00.12Z a") is None
    assert cursor.new("2026-11-22T13:00:00.120000001Z after") == "after"


def test_a_silent_program_is_asked_again_without_a_word() -> None:
    told: list[ApiError] = []
    played = Played(
        [job(), DONE], [[pod("a")], [pod("a", "Succeeded")]], [[LINES[0], SILENT], [LINES[0], LINES[1]], []]
    )
    assert read(played, follow=True, warn=told.append) == numbered(0, 1)
    assert told == []


def test_a_pod_that_has_not_started_is_waited_for() -> None:
    played = Played(
        [job(), job(), DONE],
        [[], [pod("a", "Pending")], [pod("a", "Succeeded")]],
        [[InvalidObjectError("waiting to start")], LINES[:2]],
    )
    assert read(played, follow=True) == numbered(0, 1)
    assert logs.POLL in played.slept


def test_a_retry_adds_the_log_of_its_own_pod() -> None:
    other = [line.replace("line", "again") for line in LINES[:2]]
    played = Played(
        [job(), job(), DONE],
        [[pod("a", "Failed")], [pod("a", "Failed"), pod("b", "Succeeded")]],
        [LINES[:2], [], other],
    )
    assert read(played, follow=True) == [*numbered(0, 1), "again 0", "again 1"]


def test_a_deleted_job_ends_the_log_with_what_was_read() -> None:
    gone = NotFoundError("deleted")
    played = Played([job(), gone], [[pod("a")], []], [[*LINES[:2], CUT], [gone]])
    assert read(played, follow=True) == numbered(0, 1)


def test_a_pod_deleted_in_the_middle_does_not_end_the_log_of_a_run_that_goes_on() -> None:
    played = Played(
        [job(), job(), DONE],
        [[pod("a")], [pod("a")], [pod("b", "Succeeded")]],
        [[LINES[0], CUT], [NotFoundError("pod gone")], [LINES[1]]],
    )
    assert read(played, follow=True) == numbered(0, 1)


def test_a_server_that_is_down_for_a_while_loses_no_line() -> None:
    broken = ApiError("x", {"code": 500})
    told: list[ApiError] = []
    played = Played(
        [job(), broken, broken, DONE],
        [[pod("a")], broken, broken, [pod("a", "Succeeded")]],
        [[*LINES[:2], CUT], LINES[1:], []],
    )
    assert read(played, follow=True, warn=told.append) == numbered(0, 1, 2, 3, 4, 5)
    assert told


def test_even_without_following_a_cut_log_is_completed() -> None:
    played = Played([DONE], [[pod("a", "Succeeded")]], [[LINES[0], CUT], LINES[:3]])
    assert read(played) == numbered(0, 1, 2)


def test_what_does_not_pass_is_raised() -> None:
    with pytest.raises(ForbiddenError):
        read(Played([job()], [[pod("a")]], [[ForbiddenError("pods/log")]]), follow=True)
    with pytest.raises(NotFoundError):
        read(Played([NotFoundError("no such job")], [[]], []))


def test_a_server_that_never_comes_back_is_given_up() -> None:
    with pytest.raises(UnreachableError):
        read(Played([job()], [CUT], []), follow=True)


def test_a_cut_behind_the_server_that_looks_like_an_end_is_none() -> None:
    half = "2026-11-22T13:00:02.5Z half"
    played = Played([DONE], [[pod("a", "Succeeded")]], [[*LINES[:2], half], LINES[1:]])
    assert read(played) == numbered(0, 1, 2, 3, 4, 5)


def test_a_last_line_without_a_newline_is_given() -> None:
    half = "2026-11-22T13:00:02.5Z half"
    assert read(Played([DONE], [[pod("a", "Succeeded")]], [[*LINES[:2], half], [half]])) == [*numbered(0, 1), "half"]
