"""The estimate of GPU memory in `graceful plan`. Runs on the client."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from graceful.launch.backend import Finding, Severity
from graceful.spec import RefreshSpec, memory

_PRODUCT = ("nvidia.com/gpu.product", "cloud.google.com/gke-accelerator")
_MEMORY = "nvidia.com/gpu.memory"


def estimate(resolved: RefreshSpec) -> memory.Memory | None:
    """Return what a rank keeps on its GPU; None where there is none, or the size of the network is not known here.

    The size is known where the spec names a checkpoint in a folder of this machine.
    """
    checkpoint = getattr(getattr(resolved.task, "network", None), "checkpoint", None)
    if resolved.train.use_gpu is False or checkpoint is None or not Path(checkpoint).is_dir():
        return None
    parameters = memory.parameters_of(Path(checkpoint))
    ranks = max(resolved.train.num_workers, 1)
    return None if parameters is None else memory.per_rank(parameters, resolved.train, ranks=ranks)


def note(needed: memory.Memory) -> str:
    """Return the estimate for people."""
    return f"memory of each GPU: {memory.described(needed)}; activations and live predecessors come on top"


def finding(needed: memory.Memory, documents: tuple[Mapping[str, Any], ...]) -> tuple[Finding, ...]:
    """Return a warning where pods select GPUs that are too small; none where they select none by size."""
    sizes = [size for document in documents for size in _sizes(document)]
    if not sizes or needed.gpu <= min(sizes):
        return ()
    return (
        Finding(
            rule="gpu-memory",
            severity=Severity.WARNING,
            where="train.engine",
            message=f"weights, gradients and optimiser take {memory.gib(needed.gpu)} of a GPU that has"
            f" {memory.gib(min(sizes))}",
            remedy="write a higher zero_stage, engine fsdp2, offload, or more workers",
        ),
    )


def _sizes(node: Any) -> Iterator[int]:
    """Yield the bytes of the GPUs that node selectors name, as `NVIDIA-A100-SXM4-80GB` does."""
    if isinstance(node, list | tuple):
        for part in node:
            yield from _sizes(part)
    elif isinstance(node, Mapping):
        for key, value in node.items():
            if key in _PRODUCT and (named := re.search(r"(\d+)\s?gb", str(value).lower())):
                yield int(named[1]) * 10**9
            elif key == _MEMORY and str(value).isdigit():
                yield int(value) * 2**20
            else:
                yield from _sizes(value)
