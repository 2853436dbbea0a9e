"""A line of `graceful doctor`, and the process in which checks with heavy imports run. Runs on the client."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from graceful import redact, startup
from graceful.cli import programs

PROBE_SECONDS = 180
State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the result.

    Attributes:
        name: What was looked at.
        state: ok; warn: works, with a drawback, or could not be looked at; fail: a refresh cannot work.
        found: What is there.
        remedy: What to do, empty if ok.
    """

    name: str
    state: State
    found: str
    remedy: str = ""


def ok(name: str, finding: str) -> Check:
    """Return a check that passed."""
    return Check(name=name, state="ok", found=redact.message(finding))


def warn(name: str, finding: str, remedy: str) -> Check:
    """Return a check of what works with a drawback, or could not be examined."""
    return Check(name=name, state="warn", found=redact.message(finding), remedy=remedy)


def fail(name: str, finding: str, remedy: str) -> Check:
    """Return a check without which a refresh cannot work."""
    return Check(name=name, state="fail", found=redact.message(finding), remedy=remedy)


def probe(name: str, *arguments: str, home: Path, remedy: str) -> Check:
    """Ask a process of its own whether one thing works."""
    command = startup.python("graceful.programs.probe", name, *arguments)
    env = {**os.environ, **programs.environment(os.environ, home=home)}
    try:
        process = startup.answer(command, environment=env, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return fail(name, f"no answer within {PROBE_SECONDS} s", remedy)
    lines = (process.stdout if process.returncode == 0 else process.stderr).strip().splitlines()
    last_line = lines[-1] if lines else f"ended with exit code {process.returncode} and no word"
    if process.returncode != 0:
        return fail(name, last_line, remedy)
    facts: dict[str, str] = json.loads(last_line)
    return ok(name, ", ".join(_fact(key, value) for key, value in facts.items()))


def _fact(key: str, value: str) -> str:
    return value if key in ("version", "uri") else f"{key} {value[:12] if key == 'sha256' else value}"
