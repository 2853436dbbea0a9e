"""Where the time of training goes: between marks of the loop, on the device's own clock. Runs in workers.

On a GPU a mark is an event in its stream, so that what is counted is when the GPU did it, waiting for data included;
events are read when an epoch ends. FLOPs are counted once, of one batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, schedule
from torch.utils.flop_counter import FlopCounterMode

from graceful import learners, spec
from graceful.learners import Batch, Learner
from graceful.learners.batch import size
from graceful.models.base import CODE_FAULTS
from graceful.training.rank_context import RankContext

PEAKS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
}
"""Dense FLOPs a second with numbers of two bytes, by what the name of a GPU holds; the first match counts."""


class Shares:
    """Seconds by what they were spent on.

    Args:
        device: The device of this rank.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def mark(self, what: str) -> None:
        """Say that what was done since the last mark was this; the first mark of an epoch begins it."""
        moment: Any = time.perf_counter()
        if self._gpu:
            moment = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            moment.record()
        self._marks.append((what, moment))

    def read(self) -> dict[str, float]:
        """Return the seconds since the first mark by name, and begin again; a GPU is waited for."""
        if self._gpu and self._marks:
            self._marks[-1][1].synchronize()
        seconds: dict[str, float] = {}
        for (_, start), (what, end) in zip(self._marks, self._marks[1:], strict=False):
            took = start.elapsed_time(end) / 1e3 if self._gpu else end - start
            seconds[what] = seconds.get(what, 0.0) + took
        self._marks = []
        return seconds


def of_whole(seconds: dict[str, float], *, waiting: float = 0.0) -> dict[str, float]:
    """Return each part's share of the whole.

    Args:
        seconds: By what they were spent on.
        waiting: Of the backward pass, in which it only waited for other ranks.
    """
    parts = dict(seconds)
    if waiting > 0.0:
        waiting = min(waiting, parts.get("backward", 0.0))
        parts |= {"backward": parts.get("backward", 0.0) - waiting, "communication": waiting}
    whole = sum(parts.values())
    return {name: round(part / whole, 4) for name, part in parts.items()} if whole else {}


def forward_flops(forward: Callable[[], object]) -> int | None:
    """Return the FLOPs of matrix products and convolutions in one forward pass; None where they cannot be counted.

    Args:
        forward: Runs a batch in eval mode, without gradients.
    """
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            forward()
    except CODE_FAULTS:  # a network that cannot be looked into trains all the same
        return None
    return int(counter.get_total_flops()) or None


def utilisation(flops_per_second: float, device: torch.device, *, precision: str) -> float | None:
    """Return the share of the GPU's peak (model FLOPs utilisation); None: no GPU whose peak is known, or fp32."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    peak = next((peak for part, peak in PEAKS.items() if part in name), None)
    return None if peak is None else round(flops_per_second / peak, 4)


class StepProfiler:
    """Writes where the time of steps 4 to 8 of this attempt goes, as chrome://tracing and Perfetto read it.

    Args:
        path: The file, .json.gz; None: nothing is profiled.
        device: The device of this rank.
    """

    def __init__(self, path: Path | None, device: torch.device) -> None:
        self._profiler: Any = None
        if path is not None:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
            self._profiler = profile(
                activities=activities,
                schedule=schedule(wait=2, warmup=1, active=5, repeat=1),
                on_trace_ready=lambda done: done.export_chrome_trace(str(path)),
            )
            self._profiler.start()

    def step(self) -> None:
        """Say that a step is over."""
        if self._profiler is not None:
            self._profiler.step()

    def close(self) -> None:
        """Write what there is, if that has not been done."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None


class Speedometer:
    """The numbers about speed in the row of an epoch.

    Args:
        train: The section of the spec.
        context: The context of this rank.
    """

    def __init__(self, train: spec.Train, context: RankContext) -> None:
        self._train, self._context, self._shares = train, context, Shares(context.device)
        self._flops: int | None = None

    def mark(self, what: str) -> None:
        """Implement `Shares.mark`."""
        self._shares.mark(what)

    def count(self, network: nn.Module, learner: Learner, batch: Batch) -> None:
        """Count the FLOPs of one sample's forward pass, the first time; not in a network that is in shards or compiled.

        Args:
            network: Runs the batch in eval mode, without gradients.
            learner: Knows how.
            batch: The batch of this rank.
        """
        if self._flops is not None:
            return
        engine, self._flops = self._train.engine, 0
        if self._train.compile or engine.kind == "fsdp2" or getattr(engine, "zero_stage", 0) == 3:
            return
        training = network.training
        network.eval()
        with torch.no_grad():
            counted = forward_flops(lambda: learners.run(learner, network, batch))
        network.train(training)
        self._flops = (counted or 0) // size(batch)

    def row(self, *, seconds: float, steps: int, waiting: float | None) -> dict[str, Any]:
        """Return samples a second of each worker, FLOPs, and where the time went since the last call.

        Args:
            seconds: That the steps took.
            steps: How many.
            waiting: Seconds of a step's backward pass in which it waited for other ranks; None: not known.
        """
        rate = steps * self._train.batch_size / self._context.world_size / max(seconds, 1e-9)
        shares = of_whole(self._shares.read(), waiting=steps * (waiting or 0.0))
        self._shares.mark("begin")
        row: dict[str, Any] = {"samples_per_second_per_worker": round(rate, 1), "time_shares": shares}
        if self._flops:
            pace = 3 * self._flops * rate  # a backward pass has twice the products of a forward pass
            row["tflops_per_second_per_worker"] = round(pace / 1e12, 4)
            used = utilisation(pace, self._context.device, precision=self._train.precision)
            row |= {} if used is None else {"mfu": used}
        return row
