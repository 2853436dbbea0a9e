"""The process in which checks of `graceful doctor` with heavy imports run. Runs on the client."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from graceful import startup
from graceful.cli import programs
from graceful.launch.checks import Check, fail, ok

PROBE_SECONDS = 180


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
