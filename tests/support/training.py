"""Run a function in several gloo ranks, and the experiments that every engine must pass."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from graceful import spec
from graceful.errors import IntegrityError, NonFiniteError, SpecError
from graceful.training import engine as engines
from graceful.training import schedule
from graceful.training.unpickling import load_tensors

ENGINES: dict[str, spec.Engine] = {
    "torch": spec.TorchEngine(),
    **{f"zero{stage}": spec.DeepSpeedEngine(zero_stage=stage) for stage in (0, 1, 2, 3)},
    "zero2-offload": spec.DeepSpeedEngine(zero_stage=2, offload="optimizer"),
    "zero3-offload": spec.DeepSpeedEngine(zero_stage=3, offload="all"),
    "fsdp2": spec.Fsdp2Engine(),
}
STEPS = 5


def run_distributed(fn: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Call `fn(*arguments)` in so many fresh processes, ranks of one gloo group on loopback; results by rank.

    `fn` must be importable, results picklable. An exception in a rank is raised here, with its traceback as a note.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_rank_main, args=(fn, rank, world_size, folder, arguments))
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(timeout=600)
            if process.is_alive():
                process.kill()
        results = [_result(Path(folder) / f"{rank}.pickle") for rank in range(world_size)]
    for rank, value in enumerate(results):
        if isinstance(value, Exception):
            raise value
        assert value is not None, f"rank {rank} ended with exit code {ranks[rank].exitcode} and no result"
    return results


def _result(path: Path) -> Any:
    return pickle.loads(path.read_bytes()) if path.exists() else None  # noqa: S301  written by our own rank


def _rank_main(fn: Callable[..., Any], rank: int, size: int, folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), GLOO_SOCKET_IFNAME="lo")
    try:
        with process_group(f"{folder}/store", rank=rank, size=size):
            result = fn(*arguments)
    except Exception as e:  # noqa: BLE001  raised again in the test
        e.add_note(traceback.format_exc())
        result = e
    Path(f"{folder}/{rank}.pickle").write_bytes(pickle.dumps(result))


@contextmanager
def process_group(store: str | Path, *, rank: int = 0, size: int = 1) -> Iterator[None]:
    """Yield a gloo group that meets at a file."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


class TinyNet(nn.Module):
    """Two layers, a buffer, an embedding of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 4)
        self.register_buffer("scale", torch.full((1,), 2.0))

    def embed(self, x: Tensor) -> Tensor:
        return self.body(x) * self.scale

    def classify(self, embedding: Tensor) -> Tensor:
        return self.head(embedding)


class SpareNet(TinyNet):
    """With a layer that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(3, 3)


class TiedNet(TinyNet):
    """With two layers that share their weights."""

    def __init__(self) -> None:
        super().__init__()
        square = nn.Linear(16, 16)
        self.body = nn.Sequential(nn.Linear(12, 16), square, nn.ReLU(), square)


class AdaptedNet(TinyNet):
    """With a first layer that a version only names, as it does with the weights of a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.body[0].requires_grad_(requires_grad=False)
        self.base_names = frozenset({"body.0.weight", "body.0.bias"})


def section(kind: str, **changes: Any) -> spec.Train:
    return spec.Train(engine=ENGINES[kind], batch_size=32, **changes)


def batch(step: int, *, accumulation: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's slices of one global batch of 32."""
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(32, 12, generator=generator), torch.randint(0, 4, (32,), generator=generator)
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    size = distributed.get_world_size() if distributed.is_initialized() else 1
    for xs, ys in zip(x.chunk(accumulation), y.chunk(accumulation), strict=True):
        yield xs.chunk(size)[rank], ys.chunk(size)[rank]


class Trained:
    """One engine with a tiny net, stepped by hand; keeps the loss, norm and rate of each step."""

    def __init__(self, train: spec.Train, network: Callable[[], nn.Module] = TinyNet) -> None:
        torch.manual_seed(7)
        self.train = train
        self.engine = engines.build(train, network(), device=torch.device("cpu"))
        self.losses: list[float] = []
        self.norms: list[float | None] = []

    def run(self, steps: range, *, lr: float | None = None) -> Trained:
        for step in steps:
            loss = 0.0
            for x, y in batch(step, accumulation=self.train.accumulation):
                value = F.cross_entropy(self.engine.forward(x).logits.float(), y)
                self.engine.backward(value)
                loss += _mean(value.detach()) / self.train.accumulation
            rate = lr or schedule.learning_rate(step, total=STEPS, base=self.train.optimizer.lr, warmup=0.2)
            self.norms.append(self.engine.step(rate).grad_norm)
            self.losses.append(loss)
        return self

    def weights(self) -> dict[str, np.ndarray]:
        state = self.engine.export() or {}
        return {name: tensor.numpy() for name, tensor in state.items()}


def _mean(value: Tensor) -> float:
    if not distributed.is_initialized():
        return float(value)
    total = value.clone()
    distributed.all_reduce(total)
    return float(total) / distributed.get_world_size()


def experiments(kind: str, folder: str) -> dict[str, Any]:
    """Return what one rank sees of every experiment with one engine. The tests judge it."""
    whole = Trained(section(kind)).run(range(STEPS))
    found: dict[str, Any] = {"losses": whole.losses, "norms": whole.norms, "weights": whole.weights()}

    first = Trained(section(kind)).run(range(3))
    own = Path(folder) / f"rank{distributed.get_rank()}"
    own.mkdir(parents=True)
    first.engine.save(own)
    found["files"] = sorted(path.relative_to(own).as_posix() for path in own.rglob("*") if path.is_file())
    merged = _merge(Path(folder))
    second = Trained(section(kind, seed=1))
    second.engine.load(merged)
    second.run(range(3, STEPS))
    found["resumed_losses"], found["resumed_weights"] = second.losses, second.weights()

    found["adapted"] = _resumed(section(kind), AdaptedNet, Path(folder) / "adapted")
    found["refusals"] = _refusals(kind, merged, own / "planted")

    sliced = Trained(section(kind, accumulation=2)).run(range(STEPS))
    found["sliced_losses"], found["sliced_weights"] = sliced.losses, sliced.weights()

    plain = spec.Sgd(momentum=0.0, nesterov=False, weight_decay=0.0)
    before = {name: tensor.numpy() for name, tensor in _initial().items()}
    clipped = Trained(section(kind, clip=0.01, optimizer=plain)).run(range(1), lr=0.5)
    after = clipped.weights()
    found["clipped_norm"] = clipped.norms[0]
    found["clipped_move"] = float(np.sqrt(sum(((after[k] - before[k]) ** 2).sum() for k in after)))

    adam = Trained(section(kind, optimizer=spec.AdamW())).run(range(STEPS))
    found["adamw_losses"] = adam.losses

    rates = spec.AdamW(layer_decay=0.5, head_factor=4.0, decay_norms=False, weight_decay=0.1)
    found["rates"] = _resumed(section(kind, optimizer=rates), TinyNet, Path(folder) / "rates")

    evaluated = Trained(section(kind))
    ((x, _),) = batch(0, accumulation=1)
    found["eval_requires_grad"] = evaluated.engine.forward(x, train=False).logits.requires_grad
    found["not_finite"] = _poisoned(kind)
    found["tied"] = {
        name: value.shape for name, value in Trained(section(kind), TiedNet).run(range(2)).weights().items()
    }
    found["spare"] = _spare(section(kind))
    if kind == "torch":
        tolerant = spec.TorchEngine(find_unused_parameters=True)
        found["tolerated_spare"] = _spare(section(kind).model_copy(update={"engine": tolerant}))
    found["bf16_losses"] = Trained(section(kind, precision="bf16")).run(range(STEPS)).losses
    found["after_bf16_losses"] = Trained(section(kind)).run(range(STEPS)).losses
    return found


def _resumed(train: spec.Train, network: Callable[[], nn.Module], folder: Path) -> dict[str, Any]:
    """Return a run, and the same one resumed."""
    whole = Trained(train, network).run(range(STEPS))
    first, own = Trained(train, network).run(range(3)), folder / f"rank{distributed.get_rank()}"
    own.mkdir(parents=True)
    first.engine.save(own)
    second = Trained(train, network)
    second.engine.load(_merge(folder))
    second.run(range(3, STEPS))
    return {"losses": whole.losses, "resumed": second.losses, "weights": whole.weights(), "again": second.weights()}


def all_experiments(folder: str) -> dict[str, dict[str, Any]]:
    """Every engine in one pair of processes: importing torch and deepspeed is most of the time."""
    found = {"sharded": _sharded()}  # the first thing that DeepSpeed does in these processes, as in a run
    found |= {kind: experiments(kind, f"{folder}/{kind}") for kind in ENGINES}
    found["fp16"] = _loss_scaler(Path(folder) / f"scaler-{distributed.get_rank()}.pt")
    return found


class PresumptuousNet(TinyNet):
    """Sets the weights of its head itself."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.kaiming_uniform_(self.head.weight)


def _sharded() -> dict[str, Any]:
    """Steps of a network built under zero.Init, and what it is told whose modules set weights of others."""
    train = spec.Train(engine=spec.DeepSpeedEngine(zero_stage=3, sharded_init=True), batch_size=32)
    device, rows = torch.device("cpu"), 0

    def built() -> nn.Module:
        nonlocal rows
        with engines.construction(train, device=device):
            network = TinyNet()
        rows = sum(parameter.ds_tensor.numel() for parameter in network.parameters())
        return network

    trained = Trained(train, built).run(range(STEPS))
    try:
        with engines.construction(train, device=device):
            PresumptuousNet()
        refused = ""
    except SpecError as e:
        refused = str(e)
    return {"losses": trained.losses, "weights": trained.weights(), "rows": rows, "refused": refused}


def _loss_scaler(path: Path) -> dict[str, Any]:
    """Return what is left of the state that only fp16 on a GPU has, saved and loaded without code."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    options = {"scale_window": 7, "min_scale": 1.0, "delayed_shift": 2, "consecutive_hysteresis": False}
    saved = DynamicLossScaler(init_scale=2.0**16, dtype=torch.half, **options)
    torch.save({"loss_scaler": saved}, path)
    loaded = load_tensors(path, map_location="cpu", classes=engines.value_holders())["loss_scaler"]
    return {"saved": vars(saved), "loaded": vars(loaded)}


def _initial() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return TinyNet().state_dict()


def _merge(folder: Path) -> Path:
    """Return what Ray does with the folders of all ranks."""
    distributed.barrier()
    merged = folder / "merged"
    if distributed.get_rank() == 0:
        for part in sorted(folder.glob("rank*")):
            shutil.copytree(part, merged, dirs_exist_ok=True)
    distributed.barrier()
    return merged


class Planted:
    """A value whose unpickling creates a file; what a person who may write to a bucket could put into a checkpoint."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def plant(path: Path, *, marker: Path) -> None:
    """Replace a file by a pickle that runs a command, and digests of it in every manifest beside it by the new ones."""
    torch.save({"network": {}, "module": {}, "optimizer_state_dict": Planted(marker)}, path)
    for manifest in path.parent.parent.rglob("manifest-*.json"):
        document = json.loads(manifest.read_text())
        name = os.path.relpath(path, manifest.parent)
        if name in document["files"]:
            document["files"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
            manifest.write_text(json.dumps(document))


def _refusals(kind: str, merged: Path, scratch: Path) -> dict[str, tuple[str, bool]]:
    """For each kind of file in a checkpoint: what an engine says that finds code in it, and whether the code ran."""
    found = {}
    for pattern in sorted({path.name.rpartition("_rank_")[2] for path in merged.rglob("*.pt")}):
        folder = Path(shutil.copytree(merged, scratch / pattern))
        marker = scratch / f"{pattern}.ran"
        for path in folder.rglob(f"*{pattern}"):
            plant(path, marker=marker)
        try:
            Trained(section(kind)).engine.load(folder)
            message = ""
        except IntegrityError as e:
            message = str(e)
        found[pattern] = (message, marker.exists())
    return found


def _spare(train: spec.Train) -> str | list[float]:
    """Return the losses of a network with parameters that no loss reaches, or why it is refused."""
    try:
        return Trained(train, SpareNet).run(range(STEPS)).losses
    except SpecError as e:
        return str(e)


def _poisoned(kind: str) -> str:
    poisoned = Trained(section(kind))
    ((x, _),) = batch(0, accumulation=1)
    poisoned.engine.backward(poisoned.engine.forward(x).logits.sum() * float("nan"))
    try:
        poisoned.engine.step(0.1)
    except NonFiniteError as e:
        return str(e)
    return ""
