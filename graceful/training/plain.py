"""The plain torch engine, and what both engines share: optimisers, ranks. Runs in workers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from graceful import spec
from graceful.errors import NonFiniteError, SpecError
from graceful.learners.batch import Batch
from graceful.models.base import Forward, Outputs
from graceful.models.weights import base_names, own_state, portable
from graceful.spec.deepspeed import optimizer_options
from graceful.training.preparation import compile_in_place, prepared
from graceful.training.rates import ParameterGroup, parameter_groups, set_rates
from graceful.training.unpickling import load_tensors

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FILE = "engine.pt"
Run = Callable[[nn.Module, Any], Outputs]
"""Network and batch -> outputs: a learner's `forward`."""


@dataclass(frozen=True, kw_only=True)
class StepInfo:
    """What one optimiser step did.

    Attributes:
        grad_norm: Global 2-norm before clipping, perhaps still on the device where the caller gave `sound`; None where
            the engine does not compute it (no clipping at ZeRO 0) or fp16 skipped the step.
        skipped: fp16 found an overflow and lowered its loss scale instead of stepping.
    """

    grad_norm: float | Tensor | None
    skipped: bool = False


class TorchEngine:
    """Plain torch; DistributedDataParallel when the default process group has more than one rank.

    Args:
        train: The section of the spec.
        network: What is trained.
        device: The device of this rank.
        run: How a batch goes through the network; None: embed, then classify.
        fused: Take a step in one kernel, which the device itself can leave out; None: on GPUs, but not with fp16, whose
            first steps are often left out, and torch's fused SGD then keeps momentum that was never set.
    """

    def __init__(
        self,
        train: spec.Train,
        network: nn.Module,
        *,
        device: torch.device,
        run: Run | None = None,
        fused: bool | None = None,
    ) -> None:
        self._train, self._device = train, device
        self._network = Forward(prepared(train, network).to(device), run)
        if train.compile:
            compile_in_place(self._network)
        self._groups = parameter_groups(train.optimizer, network)
        self._fused = device.type == "cuda" and train.precision != "fp16" if fused is None else fused
        self._optimizer = _torch_optimizer(train.optimizer, self._groups, fused=self._fused)
        self._parameters = list(self._network.parameters())
        self._sound = torch.ones((), dtype=torch.bool, device=device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
        self._slice = 0
        self._mode: bool | None = None
        assert isinstance(train.engine, spec.TorchEngine)
        self._tolerant = train.engine.find_unused_parameters
        self._parallel: nn.Module = self._network
        if world_size() > 1:
            # Gradients of 1 x 1 convolutions have other strides in channels-last order, but the same place in memory.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            ids = [device.index or 0] if device.type == "cuda" else None
            self._parallel = nn.parallel.DistributedDataParallel(
                self._network, device_ids=ids, find_unused_parameters=self._tolerant
            )

    def forward(self, batch: Batch, *, train: bool = True) -> Outputs:
        """Implement `Engine.forward`."""
        if self._mode != train:  # setting the mode visits every module
            self._network.train(train)
            self._mode = train
        with torch.set_grad_enabled(train), self._autocast(), self._unsynchronised():
            outputs: Outputs = (self._parallel if train else self._network)(batch)
        return outputs

    def backward(self, loss: Tensor) -> None:
        """Implement `Engine.backward`."""
        with self._unsynchronised():
            slices = self._train.accumulation
            scaled: Tensor = self._scaler.scale(loss if slices == 1 else loss / slices)
            scaled.backward()  # type: ignore[no-untyped-call]
        self._slice += 1

    def step(self, lr: float, *, sound: Tensor | None = None) -> StepInfo:
        """Implement `Engine.step`."""
        if sound is not None and not self._fused and not bool(sound):
            return StepInfo(grad_norm=None, skipped=True)
        self._slice = 0
        if world_size() > 1 and any(p.grad is None and p.requires_grad for p in self._parameters):
            unused_parameters(self._network.network, allowed=self._tolerant)
        set_rates(self._optimizer.param_groups, [lr * group.factor for group in self._groups])
        self._scaler.unscale_(self._optimizer)
        parameters = [p for p in self._parameters if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self._train.clip or float("inf"))
        info = self._stepped(norm) if sound is None or not self._fused else self._guarded(norm, sound)
        self._optimizer.zero_grad(set_to_none=True)
        return info

    def _stepped(self, norm: Tensor) -> StepInfo:
        """Step, or not, by the gradient; the process waits for the device."""
        number = float(norm)
        finite = math.isfinite(number)
        if not finite and self._train.precision != "fp16":
            raise bad_gradient(number)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return StepInfo(grad_norm=number if finite else None, skipped=not finite)

    def _guarded(self, norm: Tensor, sound: Tensor) -> StepInfo:
        """Step, or not, as the device decides; the process does not wait for it."""
        self._sound = self._sound & sound & norm.isfinite()
        self._optimizer.grad_scale = None  # type: ignore[attr-defined]
        self._optimizer.found_inf = (~self._sound).float()  # type: ignore[attr-defined]
        self._optimizer.step()
        return StepInfo(grad_norm=norm)

    def waiting(self) -> float | None:
        """Implement `Engine.waiting`, as DDP measured it in its first ten steps and every hundredth since."""
        if not isinstance(self._parallel, nn.parallel.DistributedDataParallel):
            return 0.0
        data: dict[str, int] = self._parallel._get_ddp_logging_data()  # type: ignore[no-untyped-call]
        communication = data.get("avg_backward_comm_time", 0)
        return max(communication - data.get("avg_backward_compute_comm_overlap_time", 0), 0) / 1e9

    def save(self, folder: Path) -> None:
        """Implement `Engine.save`: rank 0 writes everything, tensors and numbers only."""
        if rank() == 0:
            elsewhere = base_names(self._network.network)
            state = {
                "network": {
                    name: tensor
                    for name, tensor in self._network.state_dict().items()
                    if name.removeprefix("network.") not in elsewhere
                },
                "optimizer": self._optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
            }
            torch.save(state, folder / _FILE)

    def load(self, folder: Path) -> None:
        """Implement `Engine.load`."""
        state = load_tensors(folder / _FILE, map_location=self._device)
        self._network.load_state_dict(state["network"], strict=not base_names(self._network.network))
        for group in state["optimizer"]["param_groups"]:
            group["fused"] = True if self._fused else None
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    def export(self) -> dict[str, Tensor] | None:
        """Implement `Engine.export`."""
        return portable(own_state(self._network.network)) if rank() == 0 else None

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = _AUTOCAST.get(self._train.precision)
        return nullcontext() if dtype is None else torch.autocast(self._device.type, dtype=dtype)

    def _unsynchronised(self) -> AbstractContextManager[Any]:
        """Return a context in which gradients are exchanged once a step, in the last slice."""
        inner = self._slice < self._train.accumulation - 1
        if inner and isinstance(self._parallel, nn.parallel.DistributedDataParallel):
            synchronised: AbstractContextManager[Any] = self._parallel.no_sync()
            return synchronised
        return nullcontext()


def _torch_optimizer(
    section: spec.Optimizer, groups: Sequence[ParameterGroup], *, fused: bool
) -> torch.optim.Optimizer:
    name, options = optimizer_options(section)
    factory: type[torch.optim.Optimizer] = getattr(torch.optim, name)
    if fused:
        options["fused"] = True
    return factory(optimizer_parameters(section, groups), **options)


def optimizer_parameters(section: spec.Optimizer, groups: Sequence[ParameterGroup]) -> list[Any]:
    """Return what an optimiser of torch takes as its first argument: parameters, or groups that decay differently."""
    if len(groups) == 1 and groups[0].weight_decay == section.weight_decay:
        return list(groups[0].parameters)
    return [{"params": list(group.parameters), "weight_decay": group.weight_decay} for group in groups]


def unused_parameters(network: nn.Module, *, allowed: bool) -> None:
    """Refuse parameters that the loss did not reach, for whose gradients the workers would wait in vain.

    Args:
        network: After a backward pass.
        allowed: What `train.engine.find_unused_parameters` says.

    Raises:
        SpecError: With their names.
    """
    if allowed:
        return
    unused = [
        name for name, parameter in network.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    if unused:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        raise SpecError(
            f"task: the loss does not reach {', '.join(unused[:3])}{more} of the network, for whose gradients"
            " workers would wait; leave them out, freeze them with requires_grad_(False), or write"
            " train.engine.find_unused_parameters: true"
        )


def bad_gradient(norm: float) -> NonFiniteError:
    """Return the error for a gradient that must not be applied."""
    return NonFiniteError(
        f"gradient norm is {norm}, must be finite; lower train.optimizer.lr, or set train.clip above 0"
    )


def rank() -> int:
    """Return this process's rank in the default process group; 0 without one."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks of the default process group; 1 without one."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
