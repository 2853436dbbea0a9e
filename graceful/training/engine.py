"""The Engine protocol, and DeepSpeed behind it. Runs in workers; the only module that imports deepspeed, on first use.

Engines hold weights, optimiser state and arithmetic, nothing else. They keep no scheduler: the caller gives each step's
learning rate. Batch means are formed by the caller's equal slices, so gradients are plain means over ranks and slices.
Weights are fp32; bf16 and fp16 are torch autocast, within DeepSpeed through its `torch_autocast` section.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from graceful import spec
from graceful.environment import CPU_SETTINGS
from graceful.errors import SpecError
from graceful.learners.batch import Batch
from graceful.models.base import Forward, Outputs
from graceful.models.weights import base_names, own_state, portable
from graceful.spec.deepspeed import deepspeed_config
from graceful.training import resharding
from graceful.training.plain import (
    Run,
    StepInfo,
    TorchEngine,
    bad_gradient,
    optimizer_parameters,
    rank,
    world_size,
)
from graceful.training.preparation import compile_in_place, prepared
from graceful.training.rates import parameter_groups, set_rates
from graceful.training.unpickling import load_tensors

__all__ = ["DeepSpeedEngine", "Engine", "StepInfo", "TorchEngine", "bad_gradient", "build", "deepspeed_config"]

_TAG = "engine"


class Engine(Protocol):
    """A network in training. Every method is collective: all ranks call it, in the same order."""

    def forward(self, batch: Batch, *, train: bool = True) -> Outputs:
        """Return the outputs of a batch of this rank. Without `train`: eval mode, no gradients."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one slice; called `accumulation` times before each step."""
        ...

    def step(self, lr: float, *, sound: Tensor | None = None) -> StepInfo:
        """Clip, update the weights with this learning rate, clear the gradients.

        Args:
            lr: Learning rate.
            sound: On the device, whether every loss up to this step is finite; otherwise this step and all that follow
                change no weight. With it an engine need not wait for the device: it may leave the norm there, for the
                caller to look at later, if it changes no weight from the first gradient on that is not finite. None:
                the caller knows that they are.

        Raises:
            NonFiniteError: The gradient is NaN or infinite (with fp16 the step is skipped instead).
        """
        ...

    def waiting(self) -> float | None:
        """Return the seconds of a step's backward pass in which it only waited for other ranks; None: not measured."""
        ...

    def save(self, folder: Path) -> None:
        """Write this rank's part of weights and optimiser state into an empty folder of its own."""
        ...

    def load(self, folder: Path) -> None:
        """Read what all ranks saved, merged into one folder, and run nothing in it.

        Raises:
            IntegrityError: A file holds more than tensors and plain values.
        """
        ...

    def export(self) -> dict[str, Tensor] | None:
        """Return the Network's whole state, fp32 on the CPU, on rank 0; None on the others."""
        ...


def build(train: spec.Train, network: nn.Module, *, device: torch.device, run: Run | None = None) -> Engine:
    """Build the engine a spec names around a network; the default process group must exist if there are more ranks.

    Args:
        train: The section of the spec.
        network: What is trained.
        device: The device of this rank.
        run: How a batch goes through the network, a learner's `forward`; None: embed, then classify.

    Raises:
        SpecError: fp16 without a GPU.
    """
    require_precision(train, gpu=device.type != "cpu")
    if isinstance(train.engine, spec.DeepSpeedEngine):
        return DeepSpeedEngine(train, network, device=device, run=run)
    if isinstance(train.engine, spec.Fsdp2Engine):
        from graceful.training.fsdp import Fsdp2Engine

        return Fsdp2Engine(train, network, device=device, run=run)
    return TorchEngine(train, network, device=device, run=run)


def require_precision(train: spec.Train, *, gpu: bool) -> None:
    """Refuse arithmetic that a device does not have.

    Raises:
        SpecError: fp16 without a GPU.
    """
    if train.precision == "fp16" and not gpu:
        raise SpecError("train.precision: fp16 needs a GPU, this worker computes on cpu; write bf16 or fp32")


class DeepSpeedEngine:
    """DeepSpeed with ZeRO 0 to 3. Needs a default process group, of one rank if need be."""

    def __init__(self, train: spec.Train, network: nn.Module, *, device: torch.device, run: Run | None = None) -> None:
        assert isinstance(train.engine, spec.DeepSpeedEngine)
        self._train, self._stage, self._slice = train, train.engine.zero_stage, 0
        self._mode: bool | None = None
        self._network = Forward(prepared(train, network), run)
        if not train.engine.sharded_init:
            self._network.to(device)
        if train.compile:
            compile_in_place(self._network)
        self._groups = parameter_groups(train.optimizer, network)
        with quiet_deepspeed(device) as deepspeed:
            self._deepspeed = deepspeed
            self._engine, *_ = deepspeed.initialize(
                model=self._network,
                model_parameters=optimizer_parameters(train.optimizer, self._groups),
                config=json_of(train, network, device=device),
                dist_init_required=False,
            )
            self._engine.checkpoint_engine = _tensors_only(self._engine)

    def forward(self, batch: Batch, *, train: bool = True) -> Outputs:
        """Implement `Engine.forward`."""
        if self._mode != train:
            self._engine.train(train)
            self._mode = train
        with torch.set_grad_enabled(train):
            outputs: Outputs = self._engine(batch)
        return outputs

    def backward(self, loss: Tensor) -> None:
        """Implement `Engine.backward`."""
        self._engine.backward(loss)
        self._slice += 1
        if self._slice < self._train.accumulation:
            self._engine.step()

    def step(self, lr: float, *, sound: Tensor | None = None) -> StepInfo:
        """Implement `Engine.step`; DeepSpeed tells the norm only afterwards: weights after a bad gradient are
        worthless.

        The losses are waited for, while the device is busy with the backward pass.
        """
        if sound is not None and not bool(sound):
            return StepInfo(grad_norm=None, skipped=True)
        self._slice = 0
        set_rates(self._engine.optimizer.param_groups, [lr * group.factor for group in self._groups])
        skipped_before, norm = self._engine.skipped_steps, self._unsharded_norm()
        self._engine.step()
        if norm is None:
            norm = _number(self._engine.get_global_grad_norm())
        finite = norm is None or math.isfinite(norm)
        if norm is not None and not finite and self._train.precision != "fp16":
            raise bad_gradient(norm)
        return StepInfo(
            grad_norm=norm if finite else None, skipped=self._engine.skipped_steps > skipped_before or not finite
        )

    def _unsharded_norm(self) -> float | None:
        """Return the norm of the gradient at ZeRO 0, where DeepSpeed does not report it but whole gradients exist."""
        if self._stage > 0 or self._train.precision == "fp16":
            return None
        gradients = [p.grad for p in self._network.parameters() if p.grad is not None]
        return float(nn.utils.get_total_norm(gradients))

    def waiting(self) -> float | None:
        """Implement `Engine.waiting`; DeepSpeed does not tell."""
        return None

    def save(self, folder: Path) -> None:
        """Implement `Engine.save`; DeepSpeed's scripts for people, which it puts beside the tensors, are left out."""
        adapted = bool(base_names(self._network.network))
        self._engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False, exclude_frozen_parameters=adapted)
        for script in folder.glob("*.py"):
            script.unlink()

    def load(self, folder: Path) -> None:
        """Implement `Engine.load`."""
        whole = not base_names(self._network.network)
        self._engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=whole)

    def export(self) -> dict[str, Tensor] | None:
        """Implement `Engine.export`; at ZeRO 3 one parameter is gathered at a time."""
        network, keep = self._network.network, rank() == 0
        if self._stage < 3:
            return portable(own_state(network)) if keep else None
        own = own_state(network)
        parameters = {name: p for name, p in network.named_parameters(remove_duplicate=False) if name in own}
        state = {name: tensor for name, tensor in own.items() if name not in parameters}
        for name, parameter in parameters.items():
            with self._deepspeed.zero.GatheredParameters([parameter]):
                if keep:
                    state[name] = parameter.detach().clone()
        return portable(state) if keep else None


def json_of(train: spec.Train, network: nn.Module, *, device: torch.device) -> dict[str, Any]:
    """Return the JSON that DeepSpeed reads to train a network on a device."""
    count = sum(getattr(p, "ds_numel", p.numel()) for p in network.parameters()) if device.type == "cuda" else None
    return deepspeed_config(train, world_size=world_size(), gpu_parameters=count)


def is_sharded(train: spec.Train) -> bool:
    """Return whether a network is in shards as soon as it is built, so that only the engine can run it."""
    return isinstance(train.engine, spec.DeepSpeedEngine) and train.engine.sharded_init


@contextmanager
def construction(train: spec.Train, *, device: torch.device) -> Iterator[None]:
    """Build a network inside: with `sharded_init`, each rank keeps its share of every module as soon as it is made.

    Raises:
        SpecError: A module sets weights of another one, which only its shares are left of.
    """
    if not is_sharded(train):
        yield
        return
    with quiet_deepspeed(device) as deepspeed, warnings.catch_warnings():
        warnings.filterwarnings("error", message="Initializing zero-element tensors")
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)  # else it takes itself for the only rank
        try:
            with deepspeed.zero.Init(config_dict_or_path=deepspeed_config(train, world_size=world_size())):
                yield
        except UserWarning as e:
            raise SpecError(
                "train.engine.sharded_init: a module of network() initialises weights of another one, of which each"
                " worker has only its share; let modules initialise their own, or leave sharded_init out"
            ) from e


def value_holders() -> tuple[type, ...]:
    """Return the classes of DeepSpeed whose instances its checkpoints hold; making one has no effect."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return (LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address)


def _tensors_only(engine: Any) -> Any:
    """Return what reads and writes DeepSpeed's files as it always does, except that reading runs nothing in them."""
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    holders = value_holders()

    class TensorsOnly(TorchCheckpointEngine):  # type: ignore[misc]
        def load(self, path: str, map_location: Any = None) -> Any:
            read_file = partial(load_tensors, map_location=map_location, classes=holders)
            return resharding.read(Path(path), ranks=world_size(), read_file=read_file)

    return TensorsOnly(engine._config)


@contextmanager
def quiet_deepspeed(device: torch.device) -> Iterator[Any]:
    """Import deepspeed for a device, quietly and without compiling anything.

    On CPU, deepspeed would build a shared-memory collective with g++ (a minute, and slower than gloo for small nets);
    and one of its optimisers compiles at import, which loads torch's compiler (two seconds) unless dynamo is off.
    """
    if device.type == "cpu":
        os.environ.update(CPU_SETTINGS)
    os.environ.setdefault("LOCAL_RANK", "0")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    previous = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import deepspeed

            logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
            deepspeed.runtime.torch_autocast.TORCH_AUTOCAST_INITIALIZED = False  # a former engine's, in this process
            yield deepspeed
    finally:
        os.environ.pop("TORCHDYNAMO_DISABLE")
        if previous is not None:
            os.environ["TORCHDYNAMO_DISABLE"] = previous


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
