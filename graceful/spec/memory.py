"""What training keeps on each GPU: weights, gradients and optimiser state, counted from a spec. Pure; in every process.

Activations, outputs of live predecessors and the fragments that allocators leave come on top.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from graceful.spec.engines import DeepSpeedEngine, Fsdp2Engine
from graceful.spec.training import AdamW, Train

GIB = 2**30
_LARGEST_HEADER = 100 * 2**20


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank.

    Attributes:
        parameters: The parameters of the network, all of them.
        weights: On the GPU.
        gradients: On the GPU, with the buckets in which they travel.
        optimizer: On the GPU: moments, and copies of the weights.
        host: In the memory of the CPU instead.
    """

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    host: int

    @property
    def gpu(self) -> int:
        """Return the sum of all that is on the GPU."""
        return self.weights + self.gradients + self.optimizer


def per_rank(parameters: int, train: Train, *, ranks: int) -> Memory:
    """Return what each rank keeps while it trains a network.

    Plain torch keeps everything, and DDP's buckets as long as the gradients. DeepSpeed updates a copy of the weights in
    fp32 from ZeRO 1 on. Each share is 1 / ranks: of the optimiser from ZeRO 1 on, of gradients from 2, of weights at 3.

    Args:
        parameters: Numbers in the network.
        train: The section of the spec.
        ranks: How many share.
    """
    whole, engine = parameters * (2 if train.weights == "bf16" else 4), train.engine
    share = math.ceil(whole / ranks)
    optimizer = train.optimizer
    moments = 2 if isinstance(optimizer, AdamW) else int(optimizer.momentum > 0.0)
    if isinstance(engine, DeepSpeedEngine) and engine.zero_stage > 0:
        weights = share if engine.zero_stage == 3 else whole
        gradients = share if engine.zero_stage >= 2 else whole
        kept = (moments + 1) * share
        host = (kept if engine.offload != "none" else 0) + (weights if engine.offload == "all" else 0)
        on_gpu = (0 if engine.offload == "all" else weights, 0 if engine.offload != "none" else kept)
        return Memory(parameters=parameters, weights=on_gpu[0], gradients=gradients, optimizer=on_gpu[1], host=host)
    if isinstance(engine, Fsdp2Engine):
        return Memory(parameters=parameters, weights=share, gradients=share, optimizer=moments * share, host=0)
    gradients = whole * (2 if ranks > 1 else 1)
    return Memory(parameters=parameters, weights=whole, gradients=gradients, optimizer=moments * whole, host=0)


def described(memory: Memory) -> str:
    """Return the parts and their sum as one phrase."""
    parts = {"weights": memory.weights, "gradients": memory.gradients, "optimiser": memory.optimizer}
    text = ", ".join(f"{name} {gib(size)}" for name, size in parts.items())
    host = f", and {gib(memory.host)} in the CPU's memory" if memory.host else ""
    return f"{text}: {gib(memory.gpu)} for {memory.parameters / 1e6:,.0f} million parameters{host}"


def gib(size: float) -> str:
    """Return bytes as GiB, for people."""
    return f"{size / GIB:.1f} GiB"


def parameters_of(checkpoint: Path) -> int | None:
    """Return how many numbers the safetensors files of a folder hold, read from their headers; None: none can be."""
    try:
        counts = [_numbers(path) for path in sorted(checkpoint.glob("*.safetensors"))]
    except (OSError, ValueError, KeyError, TypeError, struct.error):  # training reports what is wrong with it
        return None
    return sum(counts) or None


def _numbers(path: Path) -> int:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(min(size, _LARGEST_HEADER)))
    return sum(_product(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _product(shape: Iterable[int]) -> int:
    return math.prod(shape)
