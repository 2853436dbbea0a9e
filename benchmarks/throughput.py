"""Samples per second of graceful's training loop beside a bare loop with the same network, optimiser and data.

    python -m benchmarks.throughput                       # ten minutes, writes benchmarks/results/throughput.json
    python -m benchmarks.throughput --rows rows.jsonl     # the same; keeps rows there, and repeats none of them
    python -m benchmarks.throughput --only s2,torch,1     # rows whose columns hold all of these words, prints only
    python -m benchmarks.throughput --only s2,torch,1 --profile   # where the time of both goes, by torch's profiler

Both loops live in the same processes and take turns, an epoch each, in changing order, so that whatever else the
machine does meets both; `ratio` is the median over rounds of graceful's rate to the bare one's, of wall time, and
`cpu_ratio` of CPU time of rank 0 and its children, which other work disturbs least. graceful's rate is that of the
epoch row of its trace: reading, losses, updates and the trace are in it, evaluation and checkpoints are not
(`cpu_ratio` counts them).

The bare loop for engine torch is DistributedDataParallel as its tutorial has it; for DeepSpeed `deepspeed.initialize`
with the very JSON that graceful derives. It clips as graceful does, reads the loss every tenth step, writes nothing.
`arrays`: bytes in memory, read by a DataLoader that indexes a whole batch at once, without workers. `jpeg`: files in
folders by class, which the bare loop decodes with Pillow in one worker of a DataLoader and graceful in its threads;
both decode them whole, which is graceful's default, and give them to the network in the order in which pixels are
decoded (`torch.channels_last`), which is the faster one. An epoch has the same samples in both loops.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from benchmarks import results, throughput_task
from graceful import spec
from graceful.spec.deepspeed import deepspeed_config, optimizer_options
from graceful.training.engine import quiet_deepspeed
from graceful.training.job import TrainingJob
from graceful.training.loop import Loop
from graceful.training.rank_context import RankContext

ENGINES: dict[str, Mapping[str, Any]] = {
    "torch": {"kind": "torch"},
    "zero2": {"kind": "deepspeed", "zero_stage": 2},
}
STEPS = {"s2": 240, "resnet": 24, "vit": 6}
"""Of an epoch."""
BATCH = {"s2": 64, "resnet": 16, "vit": 16}
"""Samples of one rank's step."""
ROUNDS = 8
EVERY = 10
"""Steps between two looks of the bare loop at its loss."""
Settings = dict[str, Any]
Epoch = Callable[[], None]


def all_settings() -> Iterator[Settings]:
    """Yield the columns that make up a row's setting."""
    for network in STEPS:
        for workers in (1, 2):
            for engine in ENGINES:
                yield {"network": network, "workers": workers, "engine": engine, "data": "arrays"}
    for workers in (1, 2):
        yield {"network": "resnet", "workers": workers, "engine": "torch", "data": "jpeg"}


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Images in memory or in files; its index is a list of positions, what comes back a batch."""

    def __init__(self, settings: Settings, root: Path, *, count: int) -> None:
        self._files: list[Path] = []
        if settings["data"] == "jpeg":
            self._files = sorted((root / "train").rglob("*.jpg"))[:count]
            names = sorted({path.parent.name for path in self._files})
            self._labels = np.asarray([names.index(path.parent.name) for path in self._files])
        else:
            pixels, labels = throughput_task.pixels(settings["network"], "train")
            self._pixels, self._labels = pixels[:count], labels[:count]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, positions: list[int]) -> tuple[Tensor, Tensor]:
        if self._files:
            squares = np.stack([self._decoded(self._files[position]) for position in positions])
            items = squares.transpose(0, 3, 1, 2)
        else:
            items = self._pixels[positions]
        return throughput_task.to_batch(items), torch.from_numpy(self._labels[positions])

    @staticmethod
    def _decoded(path: Path) -> np.ndarray:
        from PIL import Image

        with Image.open(path) as image:
            scaled = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return np.asarray(scaled)


SIDE = throughput_task.SHAPES["resnet"][1]


def draw_jpegs(root: Path, *, workers: int) -> None:
    """Write seeded JPEGs of 256 pixels a side, as many as an epoch of all ranks reads, by split and class."""
    from PIL import Image

    random = np.random.default_rng(0)
    counts = {"train": workers * STEPS["resnet"] * BATCH["resnet"], "validation": 10, "constraint": 10, "test": 10}
    for split, count in counts.items():
        for index in range(count):
            folder = root / split / throughput_task.CLASSES[index % len(throughput_task.CLASSES)]
            folder.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            coarse.resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{index:05d}.jpg", quality=90)


def refresh_of(settings: Settings, root: Path) -> spec.RefreshSpec:
    """Return what graceful is told."""
    workers, network = settings["workers"], settings["network"]
    options = {"kind": "python", "file": throughput_task.__file__, "options": {"kind": network}}
    return spec.parse(
        {
            "model": "throughput",
            "name": "v1",
            "task": options,
            "train": {
                "epochs": 10_000,
                "batch_size": BATCH[network] * workers,
                "num_workers": workers,
                "engine": ENGINES[settings["engine"]],
                "optimizer": {"kind": "sgd", "lr": 1e-4},
                "checkpoint_every": 10**9,
            },
        }
    )


class Graceful:
    """graceful's loop, an epoch at a time."""

    def __init__(self, settings: Settings, root: Path, context: RankContext) -> None:
        self.seconds = 0.0
        job = TrainingJob(spec=refresh_of(settings, root), run_dir=root / "run", task=_task(settings, root))
        self.loop = Loop(job, context, digest="")
        self.loop.start()

    def __call__(self) -> None:
        """Train an epoch."""
        self.loop.epoch()


def _task(settings: Settings, root: Path) -> Any:
    """Return the task, cut to the samples of an epoch."""
    count = STEPS[settings["network"]] * BATCH[settings["network"]] * settings["workers"]
    if settings["data"] == "jpeg":
        from graceful import tasks

        section = {"kind": "image_folder", "root": str(root), "size": SIDE, "shift": 0, "flip": False}
        folder = tasks.build(spec.parse({"model": "m", "name": "v", "task": section}).task)
        folder.network = lambda classes: throughput_task.network(settings["network"])  # type: ignore[method-assign]
        return folder
    throughput_task.SIZES["train"] = count
    return throughput_task.task(settings["network"])


def bare_epoch(settings: Settings, root: Path) -> Epoch:
    """Return a function that trains an epoch without graceful."""
    wanted, kind = refresh_of(settings, root).train, settings["network"]
    per_rank = STEPS[kind] * BATCH[kind]
    rows = Rows(settings, root, count=per_rank * settings["workers"])
    sampler = BatchSampler(RandomSampler(rows, num_samples=per_rank), BATCH[kind], drop_last=True)
    workers = {"num_workers": 1, "persistent_workers": True} if settings["data"] == "jpeg" else {}
    loader: DataLoader[Any] = DataLoader(rows, sampler=sampler, batch_size=None, **workers)  # type: ignore[arg-type]
    network = throughput_task_network(settings)
    step = bare_deepspeed(network, wanted, settings) if settings["engine"] != "torch" else bare_ddp(network, wanted)

    def epoch() -> None:
        for number, (x, y) in enumerate(loader):
            loss = step(x, y)
            if number % EVERY == 0:
                loss.item()

    return epoch


def throughput_task_network(settings: Settings) -> nn.Module:
    """Return the network as one module with a forward, which DDP and DeepSpeed wrap."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = throughput_task.network(settings["network"])

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.inner.classify(self.inner.embed(x))  # type: ignore[operator]
            return logits

    return Whole().train()


def bare_ddp(network: nn.Module, wanted: spec.Train) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a step of plain torch."""
    name, options = optimizer_options(wanted.optimizer)
    optimizer = getattr(torch.optim, name)(network.parameters(), **options)
    parallel = nn.parallel.DistributedDataParallel(network) if distributed.get_world_size() > 1 else network

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(parallel(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), wanted.clip)
        optimizer.step()
        return loss.detach()

    return step


def bare_deepspeed(network: nn.Module, wanted: spec.Train, settings: Settings) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a step of DeepSpeed."""
    config = deepspeed_config(wanted, world_size=settings["workers"])
    with quiet_deepspeed(torch.device("cpu")) as deepspeed:
        engine, *_ = deepspeed.initialize(
            model=network, model_parameters=list(network.parameters()), config=config, dist_init_required=False
        )

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(engine(x), y)
        engine.backward(loss)
        engine.step()
        return loss.detach()

    return step


def measure(settings: Settings, root: Path, *, profile: bool) -> Settings | None:
    """Take turns, and return a row on rank 0."""
    rank = distributed.get_rank()
    seconds: list[float] = []

    def report(row: Mapping[str, object]) -> None:
        if row["event"] == "epoch":
            seconds.append(float(row["seconds"]))  # type: ignore[arg-type]

    context = RankContext(
        rank=rank,
        world_size=distributed.get_world_size(),
        restore=nullcontext,  # type: ignore[arg-type]
        publish=lambda part: None,
        report=report,
    )
    ours, bare = Graceful(settings, root, context), bare_epoch(settings, root)
    walls: dict[str, list[float]] = {"ours": [], "bare": []}
    cpus: dict[str, list[float]] = {"ours": [], "bare": []}
    loops: dict[str, Epoch] = {"ours": ours, "bare": bare}
    for turn in range(ROUNDS + 1):
        for name in sorted(loops, reverse=turn % 2 == 1):
            distributed.barrier()
            started, cpu = time.perf_counter(), _cpu_seconds()
            loops[name]()
            wall = time.perf_counter() - started
            if turn:
                walls[name].append(seconds[-1] if name == "ours" and seconds else wall)
                cpus[name].append(_cpu_seconds() - cpu)
    if profile:
        _profile(loops, rank)
    if rank != 0:
        return None
    samples = STEPS[settings["network"]] * BATCH[settings["network"]] * settings["workers"]
    ratios = sorted(bare / own for own, bare in zip(walls["ours"], walls["bare"], strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    cpu_ratios = [bare / own for own, bare in zip(cpus["ours"], cpus["bare"], strict=True)]
    return {
        "device": "cpu",
        **settings,
        "graceful_samples_per_second": round(samples / statistics.median(walls["ours"]), 1),
        "bare_samples_per_second": round(samples / statistics.median(walls["bare"]), 1),
        "ratio": round(middle, 3),
        "ratio_quartiles": [round(low, 3), round(high, 3)],
        "cpu_ratio": round(statistics.median(cpu_ratios), 3),
        "step_ms": round(1e3 * statistics.median(walls["bare"]) / STEPS[settings["network"]], 2),
        "rounds": ROUNDS,
        "steps_per_round": STEPS[settings["network"]],
    }


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of those that it has started, such as workers of a DataLoader."""
    import psutil

    children = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(times.user + times.system for times in children)


def _profile(loops: Mapping[str, Epoch], rank: int) -> None:
    """Print where the time of an epoch of each loop goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    for name, loop in loops.items():
        distributed.barrier()
        with profiled(activities=[ProfilerActivity.CPU]) as record:
            loop()
        if rank == 0:
            print(name, record.key_averages().table(sort_by="self_cpu_time_total", row_limit=25), flush=True)


def rank_main(settings: Settings, root: Path, rank: int, *, profile: bool) -> None:
    """Join the group, measure, print the row."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(settings["workers"]))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    size = settings["workers"]
    distributed.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=size)
    row = measure(settings, root, profile=profile)
    if row is not None:
        print(json.dumps(row), flush=True)
    distributed.destroy_process_group()


def row_of(settings: Settings, *, profile: bool) -> Settings:
    """Run the ranks of one setting in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        if settings["data"] == "jpeg":
            draw_jpegs(Path(folder), workers=settings["workers"])
        command = [sys.executable, "-m", "benchmarks.throughput", "--settings", json.dumps(settings), "--root", folder]
        if profile:
            command.append("--profile")
        ranks = [
            subprocess.Popen([*command, "--rank", str(rank)], stdout=subprocess.PIPE, text=True)
            for rank in range(settings["workers"])
        ]
        texts = [process.communicate()[0] for process in ranks]
    if any(process.returncode for process in ranks):
        raise RuntimeError(f"{settings}: a rank failed")
    if profile:
        print(texts[0])
    row: Settings = json.loads(texts[0].splitlines()[-1])
    return row


def main() -> None:
    """Measure all settings, or some, and write or print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="Words that a row's setting must hold, separated by commas.")
    parser.add_argument("--rows", type=Path, help="Keep rows here as they come, and do not repeat those it has.")
    parser.add_argument("--profile", action="store_true", help="Print torch's profile of both loops.")
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.settings:
        rank_main(json.loads(options.settings), options.root, options.rank, profile=options.profile)
        return
    words = set(filter(None, options.only.split(",")))
    chosen = [one for one in all_settings() if words <= {str(value) for value in one.values()}]
    start = time.perf_counter()
    kept = options.rows is not None and options.rows.exists()
    rows = [json.loads(line) for line in options.rows.read_text().splitlines()] if kept else []
    for settings in chosen:
        if any(settings.items() <= row.items() for row in rows):
            continue
        rows.append(row_of(settings, profile=options.profile))
        print(json.dumps(rows[-1]), flush=True)
        if options.rows is not None:
            options.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not words:
        print(results.write("throughput", rows, time.perf_counter() - start))


if __name__ == "__main__":
    main()
