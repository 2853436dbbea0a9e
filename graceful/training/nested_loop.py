"""The training loop for a network and narrower ones within it: all of them in each step. Runs inline, without Ray."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graceful.architectures.nested import NestedNet
from graceful.training import batches
from graceful.training.loop import Loop
from graceful.training.objective import ObjectiveValue
from graceful.training.readings import Numbers


class NestedLoop(Loop):
    """One rank's run; arguments as of `Loop`. The job's task makes a `NestedNet`."""

    def _learn(self, batch_slice: batches.Slice, numbers: Numbers) -> None:
        """Add the mean of the capacities' gradients, with conflicts projected out if the job asks for it."""
        network = self.network
        assert isinstance(network, NestedNet)
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        before = _taken(parameters)
        values, gradients = [], []
        for capacity in range(len(network.capacities)):
            network.capacity = capacity
            value = self._value(batch_slice)
            self.speed.mark("forward")
            self.engine.backward(value.total)
            gradients.append(_taken(parameters))
            values.append(value)
            self.speed.mark("backward")
        network.capacity = 0
        for parameter, kept, *parts in zip(parameters, before, *gradients, strict=True):
            together = projected(parts) if self.job.together == "projected" else parts
            parameter.grad = kept + torch.stack(together).mean(0)
        numbers.add(_mean(values))


def projected(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return each gradient without its part against each of the others, which are taken in random order.

    Source: Yu et al., Gradient Surgery for Multi-Task Learning (NeurIPS 2020). Here each tensor of weights is looked at
    alone: over all of them together, gradients of capacities that share a target were never seen in conflict.

    Args:
        gradients: The gradients of one shape each.
    """
    found = []
    for position, own in enumerate(gradients):
        kept = own
        for other in torch.randperm(len(gradients)).tolist():
            against = gradients[other]
            product = (kept * against).sum()
            if other != position and bool(product < 0):
                kept = kept - product / against.square().sum() * against
        found.append(kept)
    return found


def _taken(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients, and take them away."""
    found = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return found


def _mean(values: Sequence[ObjectiveValue]) -> ObjectiveValue:
    """Return the mean loss of the capacities, and the right answers of the whole network, which is the first."""
    return ObjectiveValue(
        total=torch.stack([value.total.detach() for value in values]).mean(),
        parts={key: torch.stack([value.parts[key] for value in values]).mean() for key in values[0].parts},
        correct=values[0].correct,
    )
