"""The engine of plain torch that shards weights, gradients and optimiser state (`fully_shard`). Runs in workers.

The network's layers are gathered one at a time; what is in no layer belongs to the root and stays gathered from the
forward to the backward pass. A checkpoint holds each rank's rows, and any number of ranks can take it up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from graceful import spec
from graceful.learners.batch import Batch
from graceful.models.base import Forward, Outputs
from graceful.models.weights import base_names, own_state, portable
from graceful.spec.deepspeed import optimizer_options
from graceful.training.plain import Run, StepInfo, bad_gradient, optimizer_parameters, rank, world_size
from graceful.training.preparation import compile_in_place, distinct_layers, prepared
from graceful.training.rates import parameter_groups, set_rates
from graceful.training.unpickling import load_tensors

_FOLDER, _FILE = "shard-{:05d}", "engine.pt"


class Fsdp2Engine:
    """Fully sharded data parallel. Needs a default process group, of one rank if need be."""

    def __init__(self, train: spec.Train, network: nn.Module, *, device: torch.device, run: Run | None = None) -> None:
        self._train, self._device, self._slice = train, device, 0
        layers = distinct_layers(network)
        self._network = Forward(prepared(train, network), run)
        mesh = init_device_mesh(device.type, (world_size(),))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        self._sharded: FSDPModule = fully_shard(self._network, mesh=mesh)
        self._network.to(device)
        if train.compile:
            compile_in_place(self._network)
        self._groups = parameter_groups(train.optimizer, network)
        self._parameters = list(self._network.parameters())
        name, options = optimizer_options(train.optimizer)
        self._optimizer: torch.optim.Optimizer = getattr(torch.optim, name)(
            optimizer_parameters(train.optimizer, self._groups), **options
        )

    def forward(self, batch: Batch, *, train: bool = True) -> Outputs:
        """Implement `Engine.forward`."""
        self._network.train(train)
        with torch.set_grad_enabled(train), self._autocast():
            outputs: Outputs = self._network(batch)
        return outputs

    def backward(self, loss: Tensor) -> None:
        """Implement `Engine.backward`; gradients travel in the last slice."""
        last = self._slice == self._train.accumulation - 1
        self._sharded.set_requires_gradient_sync(last)
        scaled = loss / self._train.accumulation
        scaled.backward()  # type: ignore[no-untyped-call]
        self._slice += 1

    def step(self, lr: float, *, sound: Tensor | None = None) -> StepInfo:
        """Implement `Engine.step`; losses are waited for while the device is busy with the backward pass, the norm
        after."""
        if sound is not None and not bool(sound):
            return StepInfo(grad_norm=None, skipped=True)
        self._slice = 0
        set_rates(self._optimizer.param_groups, [lr * group.factor for group in self._groups])
        parameters = [p for p in self._parameters if p.grad is not None]
        norm = float(_whole(nn.utils.clip_grad_norm_(parameters, self._train.clip or float("inf"))))
        if not math.isfinite(norm):
            raise bad_gradient(norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return StepInfo(grad_norm=norm)

    def waiting(self) -> float | None:
        """Implement `Engine.waiting`; `fully_shard` does not tell."""
        return None

    def save(self, folder: Path) -> None:
        """Implement `Engine.save`: this rank's rows of every tensor, in a folder of its own."""
        elsewhere = base_names(self._network.network)
        own = {name: tensor for name, tensor in self._network.network.state_dict().items() if name not in elsewhere}
        optimizer = self._optimizer.state_dict()
        sharded = {
            index: {name: _local(value) for name, value in state.items()} for index, state in optimizer["state"].items()
        }
        state = {
            "world_size": world_size(),
            "network": {name: _local(tensor) for name, tensor in own.items()},
            "optimizer": {**optimizer, "state": sharded},
        }
        target = folder / _FOLDER.format(rank())
        target.mkdir()
        torch.save(state, target / _FILE)

    def load(self, folder: Path) -> None:
        """Implement `Engine.load`; the rows of another number of ranks are distributed again."""
        parts = self._parts(folder)
        network = self._network.network
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                if name in parts[0]["network"]:
                    _fill(tensor, [part["network"][name] for part in parts])
        optimizer = parts[0]["optimizer"]
        owners = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        state = {
            index: {
                name: _as(owners[index], [part["optimizer"]["state"][index][name] for part in parts]) for name in values
            }
            for index, values in optimizer["state"].items()
        }
        self._optimizer.load_state_dict({**optimizer, "state": state})

    def export(self) -> dict[str, Tensor] | None:
        """Implement `Engine.export`; one tensor is gathered at a time."""
        keep, state = rank() == 0, {}
        for name, tensor in own_state(self._network.network).items():
            whole = _whole(tensor)
            if keep:
                state.update(portable({name: whole}))
        return state if keep else None

    def _parts(self, folder: Path) -> list[dict[str, Any]]:
        """Return what this rank saved; where there were more or fewer ranks, what all of them did."""
        own = folder / _FOLDER.format(rank()) / _FILE
        if own.exists():
            part: dict[str, Any] = load_tensors(own, map_location="cpu")
            if part["world_size"] == world_size():
                return [part]
        return [load_tensors(path / _FILE, map_location="cpu") for path in sorted(folder.glob("shard-*"))]

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._train.precision == "fp32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)


def _local(value: Any) -> Any:
    return value.to_local() if isinstance(value, DTensor) else value


def _whole(tensor: Tensor) -> Tensor:
    """Return all rows of a tensor; every rank asks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _rows(like: DTensor, parts: Sequence[Tensor]) -> Tensor:
    """Return this rank's rows, of its own part or of those of all ranks that there were."""
    if len(parts) == 1 and parts[0].shape == like.to_local().shape:
        return parts[0]
    chunks = torch.cat(list(parts)).chunk(world_size())
    return chunks[rank()] if rank() < len(chunks) else parts[0].new_zeros((0, *parts[0].shape[1:]))


def _fill(tensor: Tensor, parts: Sequence[Tensor]) -> None:
    if isinstance(tensor, DTensor):
        tensor.to_local().copy_(_rows(tensor, parts))
    else:
        tensor.copy_(parts[0])


def _as(parameter: Tensor, parts: Sequence[Any]) -> Any:
    """Return a value of an optimiser in the shape of what its parameter is: sharded, where it has a number for each."""
    first = parts[0]
    if not isinstance(parameter, DTensor) or not isinstance(first, Tensor) or first.ndim != parameter.ndim:
        return first
    rows = _rows(parameter, parts).to(parameter.to_local().device)
    return DTensor.from_local(
        rows,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
