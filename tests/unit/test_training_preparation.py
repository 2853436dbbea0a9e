"""Recomputed layers, weights of two bytes, torch.compile and DeepSpeed's JSON: what a spec may say of an engine."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graceful import spec
from graceful.errors import SpecError
from graceful.spec.deepspeed import deepspeed_config
from graceful.training import preparation
from graceful.training.engine import build
from tests.support import training as support

CPU = torch.device("cpu")


class Layered(nn.Module):
    """Layers with dropout, whose masks must be drawn again alike; the last two share their weights."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(12, 12)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Dropout(0.2)) for _ in range(2))
        self.layers.extend([nn.Sequential(shared), nn.Sequential(shared)])
        self.head = nn.Linear(12, 4)

    def embed(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def classify(self, embedding: Tensor) -> Tensor:
        return self.head(embedding)


def trained(network: nn.Module, **changes: Any) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and weights of four steps."""
    engine = build(support.section("torch", **changes), network, device=CPU)
    losses = []
    for step in range(4):
        torch.manual_seed(step)
        ((x, y),) = support.batch(step, accumulation=1)
        loss = F.cross_entropy(engine.forward(x).logits.float(), y)
        engine.backward(loss)
        engine.step(0.1)
        losses.append(float(loss.detach()))
    return losses, engine.export() or {}


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Layered()


def test_recomputed_layers_take_the_same_steps_to_the_bit(network: nn.Module) -> None:
    layers = preparation.distinct_layers(network)
    assert layers == list(network.layers)[:2], "layers that share weights are left alone"  # type: ignore[arg-type]
    whole, expected = trained(copy.deepcopy(network))
    runs = [0, 0]
    for number, layer in enumerate(layers):
        layer[0].register_forward_hook(lambda *_, number=number: runs.__setitem__(number, runs[number] + 1))
    losses, weights = trained(network, recompute=True)
    assert losses == whole
    assert runs == [8, 8], "each layer runs once in the forward and once in the backward pass"
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_network_without_layers_cannot_run_them_again() -> None:
    class Flat(support.TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(12, 16)  # type: ignore[assignment]

    with pytest.raises(SpecError, match=r"train\.recompute: the network has no list of layers; leave it out"):
        build(support.section("torch", recompute=True), Flat(), device=CPU)


def test_weights_of_two_bytes_learn_and_are_exported_as_fp32(network: nn.Module) -> None:
    whole, _ = trained(copy.deepcopy(network))
    losses, weights = trained(network, precision="bf16", weights="bf16")
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert losses == pytest.approx(whole, rel=0.03)


NO_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # of torch's own compiler
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=NO_COMPILER)])
def test_a_compiled_network_is_the_same_one(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """eager: what torch.compile makes of graceful's calls; inductor: compiled with the C++ compiler, as in a run."""
    monkeypatch.setattr(preparation, "BACKEND", backend)
    torch.manual_seed(0)
    network = support.TinyNet()
    whole, expected = trained(copy.deepcopy(network))
    losses, weights = trained(network, compile=True)
    assert losses == pytest.approx(whole, rel=1e-5)
    assert weights.keys() == expected.keys()


def train(config: dict[str, Any] | None = None, **engine: Any) -> spec.Train:
    return spec.Train(engine=spec.DeepSpeedEngine(config=config or {}, **engine))


def test_keys_of_deepspeed_join_those_that_graceful_derives() -> None:
    nvme = {"offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}, "reduce_bucket_size": 1000}
    config = {"zero_optimization": {**nvme, "stage": 3}, "gradient_clipping": 5.0, "comms_logger": {"enabled": True}}
    joined = deepspeed_config(train(config, zero_stage=3, offload="optimizer"), world_size=2)
    assert joined["zero_optimization"] == {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "offload_optimizer": {"device": "nvme", "pin_memory": False, "nvme_path": "/nvme"},
        "reduce_bucket_size": 1000,
    }
    assert joined["comms_logger"] == {"enabled": True}
    assert joined["zero_force_ds_cpu_optimizer"] is False


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"gradient_clipping": 1.0},
            "gradient_clipping: got 1.0, and train.clip makes it 5.0; leave it out, or change train.clip",
        ),
        (
            {"zero_optimization": {"stage": 1}},
            "zero_optimization.stage: got 1, and train.engine.zero_stage makes it 2",
        ),
        ({"optimizer": {"params": {"lr": 1}}}, "optimizer.params.lr: got 1, and train.optimizer makes it 0.05;"),
        ({"wall_clock_breakdown": True}, "wall_clock_breakdown: got True, and the training loop needs False; leave it"),
    ],
)
def test_a_key_that_follows_from_the_spec_has_one_value(config: dict[str, Any], message: str) -> None:
    document = {"model": "m", "name": "v1", "task": {"kind": "digits"}}
    with pytest.raises(SpecError) as caught:
        spec.parse({**document, "train": {"engine": {"kind": "deepspeed", "config": config}}})
    assert f"train.engine.config.{message}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("parameters", "bucket"), [(1000, 1_000_000), (80_000_000, 10_000_000), (10**12, 500_000_000)])
def test_buckets_on_gpus_suit_the_network(parameters: int, bucket: int) -> None:
    zero = deepspeed_config(train(zero_stage=2), world_size=8, gpu_parameters=parameters)["zero_optimization"]
    assert zero["overlap_comm"] is True
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == bucket
    own = train({"zero_optimization": {"overlap_comm": False}}, zero_stage=2)
    assert deepspeed_config(own, world_size=8, gpu_parameters=parameters)["zero_optimization"]["overlap_comm"] is False


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"engine": {"kind": "deepspeed", "zero_stage": 0, "offload": "optimizer"}},
            "zero_stage 1 or more, got 0",
        ),
        ({"engine": {"kind": "deepspeed", "zero_stage": 2, "offload": "all"}}, "needs zero_stage 3 or more, got 2"),
        ({"engine": {"kind": "deepspeed", "sharded_init": True}}, "sharded_init needs zero_stage 3, got 2"),
        (
            {"engine": {"kind": "deepspeed", "zero_stage": 3, "sharded_init": True}},
            "needs a Python task and train.start: random, got task.kind digits",
        ),
        ({"engine": {"kind": "fsdp2"}, "precision": "fp16"}, "fp16 needs engine torch or deepspeed, got fsdp2"),
        (
            {"precision": "bf16", "weights": "bf16"},
            "needs train.precision: bf16 and engine torch or fsdp2, got bf16",
        ),
    ],
)
def test_what_an_engine_cannot_do_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec.parse({"model": "m", "name": "v1", "task": {"kind": "digits"}, "train": section})
    assert message in str(caught.value)


def resharded(folder: str) -> tuple[list[float], list[float]]:
    """Three steps of two ranks, saved; then the rest of the run."""
    from pathlib import Path

    from torch import distributed

    run = support.Trained(support.section("fsdp2", optimizer=spec.AdamW())).run(range(3))
    if distributed.get_rank() < distributed.get_world_size():
        run.engine.save(Path(folder))
    return run.losses, run.run(range(3, support.STEPS)).losses


def taken_up(folder: str) -> list[float]:
    """The rest of the run, from what other ranks saved."""
    from pathlib import Path

    alone = support.Trained(support.section("fsdp2", optimizer=spec.AdamW(), seed=1))
    alone.engine.load(Path(folder))
    return alone.run(range(3, support.STEPS)).losses


def test_shards_of_two_ranks_are_taken_up_by_one(tmp_path: Any) -> None:
    _, losses = support.run_distributed(resharded, 2, str(tmp_path))[0]
    (rest,) = support.run_distributed(taken_up, 1, str(tmp_path))
    assert rest == pytest.approx(losses[3:], rel=1e-5)
