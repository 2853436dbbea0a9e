"""Progress of a run, read from the newest step in its log, on any backend. Runs on the client."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from graceful.errors import GracefulError
from graceful.launch.backend import Handle, Runs

RECENT = timedelta(minutes=5)
"""Age in seconds above which a line of progress is out of date; programs write one every few seconds."""
NUMBERS = ("step", "steps", "epoch", "loss", "samples_per_second", "eta")


def of_run(runs: Runs, handle: Handle, *, here: bool) -> dict[str, Any] | None:
    """Return step, steps, epoch, loss, samples_per_second and eta (seconds), as far as the log has them.

    Args:
        runs: Where the run is.
        handle: Whose log.
        here: The log is a file of this machine, whose lines have no times; elsewhere recent ones are asked for.

    Returns:
        None: the log has no line about a step, or cannot be read.
    """
    newest = None
    try:
        for line in runs.logs(handle, since=None if here else datetime.now(UTC) - RECENT):
            if "event=step " in line:
                newest = line
    except GracefulError:  # a status is worth having without it
        return None
    return None if newest is None else _numbers(newest)


def _numbers(line: str) -> dict[str, Any] | None:
    values: dict[str, Any] = {}
    for name, text in re.findall(r"(\w+)=(\S+)", line):
        try:
            number = float(text)
        except ValueError:
            continue
        if name in NUMBERS:
            values[name] = int(number) if name in ("step", "steps", "epoch") else number
    return values or None


def described(progress: dict[str, Any]) -> str:
    """Return progress for people: `step 120 of 3000, epoch 2, loss 0.41, 830 samples/s, 14 min left`."""
    parts = []
    if "step" in progress:
        parts.append(f"step {progress['step']}" + (f" of {progress['steps']}" if "steps" in progress else ""))
    parts += [f"epoch {progress['epoch']}"] if "epoch" in progress else []
    parts += [f"loss {progress['loss']:.3g}"] if "loss" in progress else []
    parts += [f"{progress['samples_per_second']:,.0f} samples/s"] if "samples_per_second" in progress else []
    parts += [f"{_duration(progress['eta'])} left"] if "eta" in progress else []
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
