"""What every backend must do, as tests for pytest. graceful's own backends pass them, too.

    class TestSlurm(BackendContract):
        @pytest.fixture
        def target(self, tmp_path):
            profile = Slurm(kind="slurm", partition="debug")
            return BackendUnderTest(backend=profile.build(home=tmp_path), python="python3", folder=tmp_path)

A target starts small programs; `unfold` lets things happen where no program really runs.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from graceful.errors import InfrastructureError, SpecError
from graceful.launch.backend import Backend, Change, Handle, Phase, Status
from graceful.launch.job import JobSpec

LINES = [f"line {number}" for number in range(5)]
OUTCOME = 'graceful-outcome: {{"exit_code": {code}, "message": "{message}", "error": "", "retryable": false}}'
_SAY = "\n".join(f"print({line!r}, flush=True)" for line in LINES)
PROGRAMS = {
    "passed": f"{_SAY}\nprint({OUTCOME.format(code=0, message='')!r})",
    "held": f"{_SAY}\nprint({OUTCOME.format(code=3, message='too many flips')!r})",
    "spec": "import sys\nprint('graceful: x.csv: no such file', flush=True)\nsys.exit(2)",
    "failed": "import sys\nprint('graceful: step 7: loss is nan', flush=True)\nsys.exit(5)",
    "endless": f"{_SAY}\nimport time\ntime.sleep(600)",
    "endless once": "import os, sys, time\n"
    "if os.path.exists(os.environ['MARK']):\n    sys.exit()\n"
    "open(os.environ['MARK'], 'w').close()\ntime.sleep(600)",
}
"""Programs by name; what they print is how graceful's own programs tell their outcome."""
READS = """
import os, pathlib
spec = pathlib.Path(os.environ["GRACEFUL_RUN_SPEC"])
assert spec.read_text() == '{"model": "é"}', spec.read_text()
assert spec.with_name("task.py").read_text() == "one = 1\\n"
assert os.environ["GRACEFUL_HOME"] and os.environ["FROM_JOB"] == "yes"
print("read")
"""
ENDS = [
    ("passed", Phase.SUCCEEDED, 0, ""),
    ("held", Phase.SUCCEEDED, 3, "too many flips"),
    ("spec", Phase.FAILED, 2, "x.csv: no such file"),
    ("failed", Phase.FAILED, 5, "step 7: loss is nan"),
]
SECONDS = 120.0
"""The longest that any of these programs may take to end or to begin."""


@dataclass(frozen=True, kw_only=True)
class BackendUnderTest:
    """A backend and how its programs see the world.

    Attributes:
        backend: It.
        python: Interpreter where its jobs run.
        folder: One that tests and jobs share.
        unfold: Lets a submitted program of that name run, where nothing runs by itself.
        runs_programs: Whether jobs really run.
        resolution: Seconds between two times of creation that the backend can tell apart.
    """

    backend: Backend
    python: str
    folder: Path
    unfold: Callable[[Handle, str], None] = lambda handle, program: None
    runs_programs: bool = True
    resolution: float = 0.0

    def job(self, program: str, *, digest: str = "c0ffee", **changes: Any) -> JobSpec:
        """Return a job with a name of its own that runs a program: one of `PROGRAMS`, or its text."""
        name = f"m-{uuid.uuid4().hex[:10]}"
        script = self.folder / f"{name}.py"  # commands of a job are plain words
        script.write_text(PROGRAMS.get(program, program), encoding="utf-8")
        job = JobSpec(
            name=f"test {name}",
            run_id=name,
            command=(self.python, str(script)),
            env={"MARK": str(self.folder / name), "FROM_JOB": "yes"},
            labels={"config-hash": digest},
        )
        return replace(job, **changes)

    def start(self, program: str) -> Handle:
        """Submit a program and let it run."""
        handle = self.backend.submit(self.backend.plan(self.job(program)))
        self.unfold(handle, program)
        return handle

    def until(self, handle: Handle, done: Callable[[Status], bool]) -> Status:
        """Wait for a status that satisfies a condition, and return it."""
        end = time.monotonic() + SECONDS
        while not done(now := self.backend.status(handle)):
            assert time.monotonic() < end, now
            time.sleep(0.1)
        return now

    def ended(self, handle: Handle) -> Status:
        """Wait until a job is over, and return its last status."""
        return self.until(handle, lambda now: now.phase.terminal)

    def until_it_listens(self, handle: Handle) -> None:
        """Wait until the program `endless once` has begun."""
        end = time.monotonic() + SECONDS
        while self.runs_programs and not (self.folder / handle.name).exists():
            assert time.monotonic() < end
            time.sleep(0.05)


class BackendContract:
    """Tests of one backend; a subclass has a fixture `target` that returns a `BackendUnderTest`."""

    def test_a_plan_changes_nothing_and_says_what_sending_it_would(self, target: BackendUnderTest) -> None:
        """Planning is repeatable and makes no job."""
        job = target.job("passed")
        planned = target.backend.plan(job)
        assert {item.change for item in planned.differences} == {Change.CREATE}
        assert planned.errors == ()
        assert planned == target.backend.plan(job)
        assert not any(status.run_id == job.run_id for status in target.backend.list())
        with pytest.raises(SpecError, match="no run"):
            target.backend.status(planned.handle)

    def test_submitting_twice_makes_one_job_and_another_content_is_refused(self, target: BackendUnderTest) -> None:
        """The run id names a job, the label config-hash says what it computes."""
        job = target.job("endless")
        other = replace(job, labels={"config-hash": "decaf"})
        planned, stale = target.backend.plan(job), target.backend.plan(other)
        first = target.backend.submit(planned)
        again = target.backend.submit(planned), target.backend.submit(target.backend.plan(job))
        assert {first, *again} == {planned.handle}
        assert [status.handle for status in target.backend.list()].count(first) == 1
        assert Handle.parse(str(first)) == first

        for late in (stale, target.backend.plan(other)):
            with pytest.raises(SpecError, match="is there already with another spec"):
                target.backend.submit(late)
        target.backend.stop(first)

    @pytest.mark.parametrize(("program", "phase", "code", "cause"), ENDS, ids=[program for program, *_ in ENDS])
    def test_a_job_ends_with_its_phase_its_exit_code_and_its_last_words(
        self, target: BackendUnderTest, program: str, phase: Phase, code: int, cause: str
    ) -> None:
        """What a program prints last is its outcome, see `graceful.launch.ended`."""
        now = target.ended(target.start(program))
        assert (now.phase, now.exit_code, now.attempt) == (phase, code, 1)
        assert cause in now.cause
        assert now.created is not None

    def test_a_followed_log_has_every_line_once_and_ends(self, target: BackendUnderTest) -> None:
        """Following ends with the job, and the log can be read afterwards."""
        handle = target.start("passed")
        followed = [line for line in target.backend.logs(handle, follow=True) if line.startswith("line ")]
        assert followed == LINES
        assert [line for line in target.backend.logs(handle) if line.startswith("line ")] == LINES

    def test_a_stopped_job_stays_stopped_and_resumes_under_its_name(self, target: BackendUnderTest) -> None:
        """Stopping and resuming can be repeated; what succeeded is not run again."""
        handle = target.start("endless once")
        target.until(handle, lambda now: now.phase is Phase.RUNNING)
        target.until_it_listens(handle)
        for _ in range(2):
            stopped = target.backend.stop(handle)
            assert (stopped.phase, stopped.exit_code) == (Phase.STOPPED, 5)
        assert target.backend.status(handle).phase is Phase.STOPPED
        resumed = target.backend.resume(handle)
        assert (resumed.handle, resumed.phase.terminal, resumed.attempt) == (handle, False, 2)
        target.unfold(handle, "passed")
        assert target.ended(handle).exit_code == 0
        with pytest.raises(SpecError, match="nothing to resume"):
            target.backend.resume(handle)
        assert target.backend.stop(handle).phase is Phase.SUCCEEDED

    def test_what_is_not_there_is_told_by_every_command(self, target: BackendUnderTest) -> None:
        """A name that no job has is a mistake of whoever typed it."""
        nowhere = replace(target.backend.plan(target.job("passed")).handle, name="nowhere")
        for ask in (target.backend.status, target.backend.stop, target.backend.resume):
            with pytest.raises(SpecError, match="no run 'nowhere'"):
                ask(nowhere)
        with pytest.raises((SpecError, InfrastructureError), match="nowhere"):
            next(iter(target.backend.logs(nowhere)))

    def test_jobs_are_listed_newest_first(self, target: BackendUnderTest) -> None:
        """Check that jobs are listed by the time at which they were submitted."""
        handles = []
        for _ in range(2):
            handles.append(target.start("spec"))
            time.sleep(target.resolution)
        listed = [status.handle for status in target.backend.list()]
        assert [handle for handle in listed if handle in handles] == handles[::-1]

    def test_a_program_reads_its_document_its_files_and_its_variables(self, target: BackendUnderTest) -> None:
        """The document is the file that GRACEFUL_RUN_SPEC names, and the job's files lie beside it."""
        job = target.job(READS, document='{"model": "é"}', files={"task.py": "one = 1\n"})
        handle = target.backend.submit(target.backend.plan(job))
        log = list(target.backend.logs(handle, follow=True))
        assert target.ended(handle).exit_code == 0, log
        assert "read" in log
