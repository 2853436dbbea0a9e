"""What a network costs to run: multiplications, parameters, bytes, measured latency. Drivers and workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of one call: batch 1, one thread.

    Attributes:
        p50_ms: Median.
        p95_ms: 95th percentile.
        calls: How many were measured.
    """

    p50_ms: float
    p95_ms: float
    calls: int


@torch.no_grad()
def macs(embed: Callable[[Any], Any], batch: Any) -> int:
    """Return the multiply-accumulates of one call; papers call them FLOPs, torch counts two for each."""
    with FlopCounterMode(display=False) as counter:
        embed(batch)
    return int(counter.get_total_flops()) // 2


def parameters(network: nn.Module, *, without: str = "head") -> int:
    """Return the number of weights that embedding needs; the classifier, which queries do not run, is left out."""
    return sum(value.numel() for name, value in network.named_parameters() if not name.startswith(f"{without}."))


def latency(call: Callable[[], object], *, calls: int = 200, warm_up: int = 20) -> Latency:
    """Return the percentiles of the wall time of a call, which the caller pins to one thread."""
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(calls):
        begun = time.perf_counter()
        call()
        times.append(1000.0 * (time.perf_counter() - begun))
    p50, p95 = np.percentile(times, [50, 95])
    return Latency(p50_ms=float(p50), p95_ms=float(p95), calls=calls)
