"""Peak memory of a network that two ranks build in shards (`train.engine.sharded_init`), and of one that each builds.

    python -m benchmarks.sharded_init                   # two minutes, writes benchmarks/results/sharded_init.json
    python -m benchmarks.sharded_init --layers 6        # a quarter of the size; prints only

24 linear layers of 4,096 x 4,096, 403 million parameters in fp32, DeepSpeed ZeRO 3 on two ranks of gloo, plain SGD.
Each rank builds the network, wraps it into graceful's engine, and takes a step on four rows. Peaks are those of the
process's resident memory above what it had before the network, as the kernel counts them, in units of the whole
network's bytes; the larger one of both ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import distributed, nn

from benchmarks import results
from graceful import spec
from graceful.models.base import Headed
from graceful.training import engine

WIDTH, LAYERS, RANKS, ROWS, CLASSES = 4096, 24, 2, 4, 10


def peak() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(*, sharded: bool, layers: int) -> dict[str, Any]:
    """Build, wrap and take a step; return the peak after each, less the one before."""
    train = spec.parse(
        {
            "model": "wide",
            "name": "v1",
            "task": {"kind": "python", "file": __file__},
            "train": {
                "batch_size": ROWS * RANKS,
                "num_workers": RANKS,
                "optimizer": {"kind": "sgd", "momentum": 0.0, "nesterov": False},
                "engine": {"kind": "deepspeed", "zero_stage": 3, "sharded_init": sharded},
            },
        }
    ).train
    device, before, peaks = torch.device("cpu"), peak(), {}
    with engine.construction(train, device=device):
        body = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
        network = Headed(body, nn.Linear(WIDTH, CLASSES))
    peaks["built"] = peak() - before
    wrapped = engine.build(train, network, device=device)
    peaks["wrapped"] = peak() - before
    outputs = wrapped.forward(torch.ones(ROWS, WIDTH))
    wrapped.backward(outputs.logits.logsumexp(1).mean())
    wrapped.step(1e-3)
    peaks["stepped"] = peak() - before
    whole = 4 * WIDTH * (WIDTH * layers + CLASSES)
    return {
        "sharded_init": sharded,
        "million_parameters": round(whole / 4e6),
        "gigabytes_of_network": round(whole / 1e9, 2),
        **{f"peak_{name}": round(value / whole, 2) for name, value in peaks.items()},
    }


def rank_main(rank: int, root: str, *, sharded: bool, layers: int) -> None:
    """Join the other rank, measure, print."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=RANKS)
    with engine.quiet_deepspeed(torch.device("cpu")):
        print(json.dumps(measure(sharded=sharded, layers=layers)), flush=True)
    distributed.destroy_process_group()


def row_of(*, sharded: bool, layers: int) -> dict[str, Any]:
    """Run both ranks in processes of their own; the larger peaks of both."""
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "benchmarks.sharded_init", "--layers", str(layers), "--root", root]
        command += ["--sharded"] if sharded else []
        processes = [
            subprocess.Popen([*command, "--rank", str(rank)], stdout=subprocess.PIPE, text=True)
            for rank in range(RANKS)
        ]
        texts = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError("a rank failed")
    rows = [json.loads(next(line for line in text.splitlines() if line.startswith('{"sharded'))) for text in texts]
    return {key: max(row[key] for row in rows) for key in rows[0]}


def main() -> None:
    """Measure both and write or print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LAYERS, help="Of the network.")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    parser.add_argument("--sharded", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.root:
        rank_main(options.rank, options.root, sharded=options.sharded, layers=options.layers)
        return
    start = time.perf_counter()
    rows = [row_of(sharded=sharded, layers=options.layers) for sharded in (True, False)]
    for row in rows:
        print(json.dumps(row))
    if options.layers == LAYERS:
        print(results.write("sharded_init", rows, time.perf_counter() - start))


if __name__ == "__main__":
    main()
