"""Numbers of a run for Prometheus, beside Ray's own and by its exporter: loss, speed, flips, verdict. Driver.

Ray's pods offer them as `ray_graceful_...` on the port `metrics`. Where no Ray runs in this process, nothing happens.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from graceful.report import Report

NAMES = {
    "graceful_loss": "Training loss of the newest step.",
    "graceful_samples_per_second": "Speed of training.",
    "graceful_step": "Newest step.",
    "graceful_negative_flip_rate": "Share of samples that an ancestor has right and the new version wrong.",
    "graceful_gate_passed": "1: the gate passed the new version; 0: it is held.",
}
"""Gauges that are published, with their descriptions."""
NFR = "negative_flip_rate"


def progress(row: Mapping[str, object]) -> None:
    """Publish the numbers of a step from a row of progress."""
    for key in ("loss", "samples_per_second", "step"):
        value = row.get(key)
        if isinstance(value, int | float):
            _set(f"graceful_{key}", float(value))


def judged(report: Report, *, passed: bool) -> None:
    """Publish the verdict, and the flips that it rests on."""
    _set("graceful_gate_passed", float(passed))
    for comparison in report.comparisons:
        measured = comparison.measurements.get(NFR)
        if measured is not None and measured.value is not None:
            _set("graceful_negative_flip_rate", measured.value, against=comparison.against)


def _set(name: str, value: float, **tags: str) -> None:
    ray: Any = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        _gauge(name, tuple(tags)).set(value, tags=tags)


@cache
def _gauge(name: str, keys: tuple[str, ...]) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(name, description=NAMES[name], tag_keys=keys)
