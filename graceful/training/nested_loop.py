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
        """Add the mean of the capacities' gradients, without what is in conflict if the job says so."""
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
        if self.job.together == "projected":
            gradients = projected(gradients)
        merged = before + torch.stack(gradients).mean(0)
        for parameter, part in zip(parameters, torch.split(merged, [p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
        numbers.add(_mean(values))


def projected(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return each gradient without its part against each of the others, which are taken in random order.

    Source: Yu et al., Gradient Surgery for Multi-Task Learning (NeurIPS 2020).

    Args:
        gradients: Of one shape each.
    """
    found = []
    for position, own in enumerate(gradients):
        kept = own
        for other in torch.randperm(len(gradients)).tolist():
            against = gradients[other]
            product = torch.dot(kept, against)
            if other != position and bool(product < 0):
                kept = kept - product / torch.dot(against, against) * against
        found.append(kept)
    return found


def _taken(parameters: Sequence[Tensor]) -> Tensor:
    """Return the gradients as one vector, and take them away."""
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    for parameter in parameters:
        parameter.grad = None
    return flat


def _mean(values: Sequence[ObjectiveValue]) -> ObjectiveValue:
    """Return the mean loss of the capacities, and the right answers of the whole network, which is the first."""
    return ObjectiveValue(
        total=torch.stack([value.total.detach() for value in values]).mean(),
        parts={key: torch.stack([value.parts[key] for value in values]).mean() for key in values[0].parts},
        correct=values[0].correct,
    )
