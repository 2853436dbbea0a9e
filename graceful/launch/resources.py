"""Quantities as Kubernetes writes them (500m, 4Gi), and what machines cost. Pure functions. Runs on the client."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_UNITS: dict[str, float] = {
    "": 1,
    "m": 1e-3,
    **{unit: 1000**power for power, unit in enumerate(("k", "M", "G", "T", "P"), start=1)},
    **{f"{unit}i": 1024**power for power, unit in enumerate(("K", "M", "G", "T", "P"), start=1)},
}
_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)(" + "|".join(sorted(_UNITS, key=len, reverse=True)) + ")")
GIB = 1024**3
_ACCELERATOR = re.compile(r".*gpu|nvidia\.com/mig-\d+g\.\d+gb")
"""Names of resources that KubeRay counts as GPUs of Ray."""


def quantity(value: str | float) -> float:
    """Return the number behind a quantity: cores for `500m`, bytes for `4Gi`.

    Raises:
        ValueError: It is none; the message says what is.
    """
    match = _QUANTITY.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(f"must be a quantity such as 2, 500m or 4Gi, got {value!r}")
    return float(match[1]) * _UNITS[match[2]]


def written(memory: int) -> str:
    """Return bytes as the shortest exact quantity."""
    for unit in ("Ti", "Gi", "Mi", "Ki"):
        if memory and memory % int(_UNITS[unit]) == 0:
            return f"{memory // int(_UNITS[unit])}{unit}"
    return str(memory)


def is_accelerator(resource: str) -> bool:
    """Return whether KubeRay tells Ray of a resource as GPUs."""
    return _ACCELERATOR.fullmatch(resource) is not None


def cores(cpu: float) -> str:
    """Return cores as a quantity: whole ones plain, parts in thousandths."""
    return str(int(cpu)) if cpu == int(cpu) else f"{round(cpu * 1000)}m"


def demand(container: Mapping[str, Any]) -> tuple[float, int, int]:
    """Return (cores, bytes, accelerators) that a container may use at most; what has no limit counts as 0.

    Ray reads the same: CPU from limits, else requests; GPUs and parts of them (MIG) are accelerators.
    """
    resources = container.get("resources") or {}
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    gpus = sum(quantity(value) for key, value in limits.items() if is_accelerator(key))
    return (
        quantity(limits.get("cpu", requests.get("cpu", 0))),
        int(quantity(limits.get("memory", 0))),
        int(gpus),
    )
