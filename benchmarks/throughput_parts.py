"""Where the time of a step goes: CPU time of graceful's loop with one part left out or changed, and of a bare loop.

    python -m benchmarks.throughput_parts            # four minutes, writes benchmarks/results/throughput_parts.json
    python -m benchmarks.throughput_parts --only s2  # prints only

All loops of a setting live in one process, with one worker on plain torch, and take turns, an epoch each, in an order
that is shuffled in every round. `cpu_ms` is the median over rounds of the CPU time that a step takes this process and
those that it started; evaluation and checkpoints are left out. What a part costs is the difference to `as it is`.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from benchmarks import results, throughput
from graceful.tasks import image_batches
from graceful.training import prefetch, seeds
from graceful.training.loop import Loop
from graceful.training.objective import ObjectiveValue
from graceful.training.rank_context import RankContext

ROUNDS = 24
SETTINGS = (("s2", "arrays"), ("resnet", "jpeg"))
Change = Callable[[Loop], Any]
"""Returns a context in which an epoch is trained."""


def nothing(*_: Any, **__: Any) -> None:
    """Do nothing."""


def torchs_loss(outputs: Any, labels: Tensor, *_: Any, **__: Any) -> ObjectiveValue:
    """Return the loss as the bare loop computes it."""
    loss = F.cross_entropy(outputs.logits, labels)
    return ObjectiveValue(total=loss, parts={}, correct=loss.detach())


def decoded_before(loop: Loop) -> Any:
    """Let the loop read photos that were decoded before it began."""
    train = loop.materials.train
    photos = train.read(np.arange(len(train)))
    held = {"read": lambda positions: [photos[position] for position in positions.tolist()]}

    @contextmanager
    def change() -> Iterator[None]:
        before = train.read
        object.__setattr__(train, "read", held["read"])
        try:
            yield
        finally:
            object.__setattr__(train, "read", before)

    return change


def in_rows(loop: Loop) -> Any:
    """Let the network have images channel by channel, as torch has them without a memory format."""
    learner = loop.materials.learner
    collate = learner.collate
    return mock.patch.object(learner, "collate", lambda items, views: collate(items, views).contiguous())  # type: ignore[union-attr]


def changes(data: str) -> Mapping[str, Change]:
    """Return what is changed, by name."""
    if data == "jpeg":
        return {
            "as it is": lambda loop: nullcontext(),
            "images channel by channel": in_rows,
            "small images converted in threads": lambda loop: mock.patch.object(image_batches, "SMALL", 0),
            "images decoded before": lambda loop: loop.decoded(),  # type: ignore[attr-defined]
        }
    return {
        "as it is": lambda loop: nullcontext(),
        "batches always made in a thread": lambda loop: mock.patch.object(prefetch, "QUICK_SECONDS", 0.0),
        "without rows of the trace": lambda loop: mock.patch.object(loop.reporter, "step", nothing),
        "without the seeds of a step": lambda loop: mock.patch.object(seeds, "reseed", nothing),
        "loss of torch, one number for a batch": lambda loop: mock.patch.object(loop, "objective", torchs_loss),
    }


def measure(network: str, data: str, root: Path) -> list[dict[str, Any]]:
    """Return a row for each change, and one for the bare loop."""
    settings = {"network": network, "workers": 1, "engine": "torch", "data": data}
    if data == "jpeg":
        throughput.draw_jpegs(root, workers=1)
    context = RankContext(restore=nullcontext, publish=lambda part: None)  # type: ignore[arg-type]
    ours, bare = throughput.Graceful(settings, root, context), throughput.bare_epoch(settings, root)
    loop: Any = ours.loop
    loop._evaluate = loop._save = nothing
    if data == "jpeg":
        loop.decoded = decoded_before(loop)
    cpu: dict[str, list[float]] = {}
    loops: dict[str, Any] = {**changes(data), "bare loop": None}
    names, order = list(loops), random.Random(0)
    for _ in range(ROUNDS + 1):
        order.shuffle(names)
        for name in names:
            with nullcontext() if name == "bare loop" else loops[name](loop):
                started = throughput._cpu_seconds()
                (bare if name == "bare loop" else ours)()
                cpu.setdefault(name, []).append(throughput._cpu_seconds() - started)
    steps = throughput.STEPS[network]
    columns = {"network": network, "data": data}
    return [
        {**columns, "loop": name, "cpu_ms": round(1e3 * statistics.median(seconds[1:]) / steps, 3), "rounds": ROUNDS}
        for name, seconds in ((name, cpu[name]) for name in loops)
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="A network: s2 or resnet.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    started, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        for network, data in SETTINGS:
            if options.only in (None, network):
                for row in measure(network, data, Path(folder)):
                    rows.append(row)
                    print(f"{row['network']:8}{row['data']:8}{row['loop']:40}{row['cpu_ms']:8.2f} ms", flush=True)
        distributed.destroy_process_group()
    if options.only is None:
        print(results.write("throughput_parts", rows, time.perf_counter() - started))


if __name__ == "__main__":
    main()
