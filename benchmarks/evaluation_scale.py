"""What a report costs by the number of predecessors, first and again, and how much memory it takes.

    python -m benchmarks.evaluation_scale            # minutes, writes benchmarks/results/evaluation_scale.json
    python -m benchmarks.evaluation_scale --quick    # fewer predecessors and samples, prints only

Time: glyphs' test split and its retrieval splits, networks of size `m` with random weights, 1,000 bootstrap draws.
`first`: no version has been measured before. `again`: the predecessors have, the new version has not, as in a refresh
on unchanged test data. `run` is the part in which versions are run or their answers read; the rest are metrics. Each is
CPU seconds of this process, beside the same report without predecessors in the same round; medians over rounds.
Memory: one version on synthetic outputs of many classes, in a process of its own; the peak is that of the process, and
the same process without samples is subtracted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks import results
from graceful import spec, tasks
from graceful.chain import Predecessor
from graceful.learners import Classifier, learner_of
from graceful.models.base import Headed
from graceful.programs.evaluation.evaluate import evaluate
from graceful.programs.outputs.kept_outputs import KeptOutputs
from graceful.programs.outputs.model_outputs import Evaluated, answers_on_split, run_versions
from graceful.storage import Mirror
from graceful.tasks.base import Samples, Task

COUNTS = (0, 1, 4, 16)
TASK = {"kind": "glyphs", "network": {"size": "m", "embedding": 64, "head": "cosine"}}
WANTED = spec.parse({"model": "glyphs", "name": "new", "task": TASK})


def version(task: Task, index: int) -> Predecessor:
    """Return a version with random weights."""
    torch.manual_seed(index)
    return Predecessor(
        name=f"v{index}",
        model_id=f"m-{index}",
        digest=f"digest-{index}",
        classes=task.classes,
        embedding_size=64,
        network=task.network(task.classes).eval(),
        learner=learner_of(task),
        transform_digest="transform",
    )


def round_of(count: int, task: Task) -> dict[str, float]:
    """Return the CPU seconds of one report with `count` predecessors: first and again, all of it and running versions
    alone."""
    chain = [version(task, index) for index in range(1, count + 1)]
    with tempfile.TemporaryDirectory() as folder:
        kept = KeptOutputs.of(Path(folder), Mirror.NONE)
        found = {}
        for moment, new in (("first", version(task, 0)), ("again", version(task, 99))):
            found[moment] = seconds(lambda new=new: evaluate(WANTED, new, chain, task=task, kept=kept))
        samples = Evaluated.of(task, with_retrieval=True)
        found["run_first"] = seconds(lambda: run_versions([version(task, 0), *chain], samples, batch_size=1024))
        again = Evaluated.of(task, with_retrieval=True, kept=kept)
        found["run_again"] = seconds(lambda: run_versions([version(task, 98), *chain], again, batch_size=1024))
    return found


def seconds(action: Any) -> float:
    """Return the CPU seconds of a call."""
    started = time.process_time()
    action()
    return time.process_time() - started


def times(rounds: int, counts: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return one row for each number of predecessors and moment."""
    task = tasks.build(WANTED.task)
    measured: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            measured[count].append(round_of(count, task))
            print(count, {name: round(value, 2) for name, value in measured[count][-1].items()}, flush=True)
    rows = []
    for count in counts:
        for moment in ("first", "again"):
            pairs = list(zip(measured[count], measured[counts[0]], strict=True))
            rows.append(
                {
                    "predecessors": count,
                    "evaluation": moment,
                    "cpu_seconds": round(statistics.median(one[moment] for one, _ in pairs), 2),
                    "run_cpu_seconds": round(statistics.median(one[f"run_{moment}"] for one, _ in pairs), 2),
                    "run_ratio_to_none": round(
                        statistics.median(one[f"run_{moment}"] / none[f"run_{moment}"] for one, none in pairs), 2
                    ),
                    "rounds": rounds,
                }
            )
    return rows


class Synthetic(torch.nn.Module):
    """Embeds a number as itself, so that its head alone makes the outputs."""

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Map [B, 1] to [B, 8]."""
        return torch.sin(numbers * torch.arange(1.0, 9.0))


def peak(samples: int, classes: int) -> float:
    """MB that a process takes at most while one version answers `samples` samples, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(_peak, (samples, classes)))


def _peak(samples: int, classes: int) -> float:
    torch.manual_seed(0)
    names = tuple(f"class-{index:04d}" for index in range(classes))
    network = Headed(Synthetic(), torch.nn.Linear(8, classes)).eval()
    learner = Classifier(lambda items, _: torch.from_numpy(np.asarray(items)))
    one = Predecessor(
        name="v1",
        model_id="m",
        digest="d",
        classes=names,
        embedding_size=8,
        network=network,
        learner=learner,
        transform_digest="t",
    )
    rows = max(samples, 1)
    split = Samples.of(
        np.linspace(0.0, 1.0, rows, dtype=np.float32)[:, None],
        np.arange(rows) % classes,
        classes=names,
        ids=np.char.add("s", np.arange(rows).astype(np.str_)),
    )
    if samples:
        answers_on_split(one, split, 1024, embeddings=True)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(samples: int, classes: int) -> dict[str, Any]:
    """Return one row."""
    found = peak(samples, classes) - peak(0, classes)
    matrix = 4.0 * samples * classes / 2**20
    print(f"{samples} samples x {classes} classes: {found:.0f} MB more than none; a matrix of logits {matrix:.0f} MB")
    return {"samples": samples, "classes": classes, "peak_mb": round(found), "logits_mb": round(matrix)}


def main() -> None:
    """Measure time, then memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer predecessors and samples, prints only")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    started = time.monotonic()
    if options.quick:
        print(times(1, COUNTS[:2]), memory(20_000, 1000))
        return
    rows = [*times(options.rounds, COUNTS), memory(10**6, 1000)]
    print(results.write("evaluation_scale", rows, time.monotonic() - started))


if __name__ == "__main__":
    main()
