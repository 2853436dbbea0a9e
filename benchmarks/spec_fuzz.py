"""Does every malformed spec, profile and command line end within five seconds, with exit code 2 and one line?

python -m benchmarks.spec_fuzz [COUNT] [SEED]     prints a table, writes benchmarks/results/spec_fuzz.json

Most run in this process through the function that the `graceful` command calls; one in fifty is a process of its own.
Time is wall time. Only a case that takes longer than the limit is timed again, because the machine may be busy.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import yaml

from benchmarks.malformed import Case, cases
from benchmarks.malformed_values import PROFILES, REPORT, SPECS
from benchmarks.results import write
from graceful.errors import EXIT_USAGE

COUNT, SEED = 10_000, 11
LIMIT = 5.0
"""Seconds that one case may take."""
TRIES = 5
"""Times that a case is timed which takes longer; the shortest counts."""
PATIENCE = 60
"""Seconds after which a case is given up."""
EVERY = 50
"""One case of so many is run as a process of its own."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How one case ended.

    Attributes:
        code: Exit code; negative: a signal.
        stdout: What it printed.
        stderr: What it said.
        seconds: Wall time.
    """

    code: int
    stdout: str
    stderr: str
    seconds: float

    def problem(self) -> str:
        """Return what is wrong with it; empty: it ended as it must."""
        lines = self.stderr.splitlines()
        if self.code != EXIT_USAGE:
            return f"exit code {self.code}"
        if len(lines) != 1 or not lines[0].startswith("graceful: "):
            return f"{len(lines)} lines on stderr"
        if not lines[0].isprintable():
            return "control characters on stderr"
        if self.stdout:
            return "a result on stdout"
        return f"{self.seconds:.1f} s" if self.seconds > LIMIT else ""


def prepare(folder: Path) -> None:
    """Write the valid files that command lines name."""
    for document in SPECS[:2]:
        (folder / f"{document['name']}.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    for document in PROFILES:
        (folder / f"{document['kind']}.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(REPORT), encoding="utf-8")


def run(case: Case, folder: Path, *, alone: bool) -> Ended:
    """Run one case in a prepared folder; `alone`: as a process of its own."""
    file = folder / "case.yaml"
    file.unlink(missing_ok=True)
    if case.content is not None:
        file.write_bytes(case.content)
    ended = _once(case, folder, alone=alone)
    for _ in range(TRIES - 1):  # a busy machine makes one wait; a case that hangs does so every time
        if ended.seconds <= LIMIT:
            break
        ended = min(ended, _once(case, folder, alone=alone), key=lambda one: one.seconds)
    return ended


def _once(case: Case, folder: Path, *, alone: bool) -> Ended:
    before = time.monotonic()
    code, stdout, stderr = _process(case, folder) if alone else _here(case, folder)
    return Ended(code=code, stdout=stdout, stderr=stderr, seconds=time.monotonic() - before)


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Return the environment, without what this machine says to graceful, and with changes."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("GRACEFUL_", "MLFLOW_", "KUBE"))}
    return {**ours, **changes}


def _environment(case: Case, folder: Path) -> dict[str, str]:
    return environment({"GRACEFUL_HOME": str(folder / "home"), "KUBECONFIG": str(folder / "none"), **case.env})


def _process(case: Case, folder: Path) -> tuple[int, str, str]:
    command = [sys.executable, "-P", "-m", "graceful.cli", *case.arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env=_environment(case, folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def _here(case: Case, folder: Path) -> tuple[int, str, str]:
    from graceful.cli import main as graceful

    stdout, stderr = io.StringIO(), io.StringIO()
    with _surroundings(case, folder), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = graceful(list(case.arguments))
    return code, stdout.getvalue(), stderr.getvalue()


@contextlib.contextmanager
def _surroundings(case: Case, folder: Path) -> Iterator[None]:
    before, place = dict(os.environ), Path.cwd()
    os.environ.clear()
    os.environ.update(_environment(case, folder))
    os.chdir(folder)
    start, subprocess.Popen = subprocess.Popen, _refuse_to_start
    alarm = signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        subprocess.Popen = start
        signal.signal(signal.SIGALRM, alarm)
        os.chdir(place)
        os.environ.clear()
        os.environ.update(before)


def _refuse_to_start(*arguments: object, **options: object) -> NoReturn:
    """Refuse to start a program: malformed input must be refused before, and a start takes seconds."""
    raise OSError(errno.EPERM, f"started {arguments[0]!r:.200}")


def _give_up(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"no end within {PATIENCE} s")


def main(arguments: list[str]) -> int:
    """Print and write the table; 1 if any case ended otherwise."""
    count, seed = (int(given) for given in [*arguments, COUNT, SEED][:2]) if arguments else (COUNT, SEED)
    start = time.monotonic()
    kinds: dict[str, list[tuple[Case, Ended]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder)
        for number, case in enumerate(cases(seed, count)):
            possible = not any("\0" in word for word in (*case.arguments, *case.env.values()))
            ended = run(case, folder, alone=possible and number % EVERY == 0)
            kinds[case.what.partition(":")[0]].append((case, ended))
            if ended.problem():
                words = [word[:60] for word in case.arguments]
                print(f"{case.what}: {ended.problem()}: {words} {case.env} {ended.stderr[:300]!r}", flush=True)
    rows = [_row(kind, seed, found) for kind, found in kinds.items()]
    print("  ".join(rows[0]))
    for row in rows:
        print("  ".join(f"{value!s:>{len(key)}}" for key, value in row.items()))
    if not arguments:
        print("wrote", write("spec_fuzz", rows, time.monotonic() - start).name)
    return int(any(row["others"] for row in rows))


def _row(kind: str, seed: int, found: list[tuple[Case, Ended]]) -> dict[str, object]:
    seconds = sorted(ended.seconds for _, ended in found)
    return {
        "malformed": kind,
        "seed": seed,
        "cases": len(found),
        "exit 2 with one line within 5 s": sum(not ended.problem() for _, ended in found),
        "others": sum(bool(ended.problem()) for _, ended in found),
        "median_ms": round(1000 * seconds[len(seconds) // 2], 1),
        "longest_s": round(seconds[-1], 2),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
