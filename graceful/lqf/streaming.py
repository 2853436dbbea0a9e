"""A linearised network that is trained by steps, with ordinary backward passes. Runs in workers.

Two passes make it: a product with J without gradients gives the values f_lin, and the network at w0, called with
parameters w0 + (delta - delta), gives the gradient J'u of whatever is computed from them. The second pass is an
ordinary one, so that hooks, DistributedDataParallel and ZeRO stages that keep whole parameters work as with any
network.

Steps are taken in coordinates theta with delta = a S theta, S S' the inverse of the curvature by Kronecker factors plus
penalty: gradient descent on theta is preconditioned descent on delta.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from graceful.learners.batch import Batch
from graceful.lqf.network import Linearised
from graceful.lqf.operators import unflat
from graceful.lqf.tangent import Run, Tangent, differentiable, plain
from graceful.models.base import Forward, Outputs


class Streaming(Linearised):
    """A linearised network whose delta follows from trained coordinates.

    Args:
        network: At w0; frozen.
        names: Parameters that have a delta.
        spread: S, from coordinates [P] to a delta [P]; differentiable, the same on all workers.
        amplitude: a.
        penalty: l.

    Attributes:
        theta: [P] the coordinates, the only trained parameter.
    """

    def __init__(
        self,
        network: nn.Module,
        names: Sequence[str],
        *,
        spread: Callable[[Tensor], Tensor],
        amplitude: float,
        penalty: float,
    ) -> None:
        super().__init__(network, names)
        self._spread, self.amplitude, self.penalty = spread, amplitude, penalty
        start = dict(network.named_parameters())
        first = start[self.names[0]]
        total = sum(start[name].numel() for name in self.names)
        self.theta = nn.Parameter(torch.zeros(total, dtype=first.dtype, device=first.device))

    def vector(self) -> Tensor:
        """Return delta as one vector [P]."""
        return self.amplitude * self._spread(self.theta)

    def deltas(self) -> dict[str, Tensor]:
        """Return delta by the names of the parameters, as a function of the coordinates."""
        start = dict(self.network.named_parameters())
        return unflat(self.vector(), {name: start[name] for name in self.names})

    def outputs_by(self, run: Run, batch: Batch) -> Outputs:
        """Return the outputs of a batch, with the gradient of the linearised network where gradients are on."""
        deltas = self.deltas()
        along = Tangent(self.network, run, self.names).push(batch, {name: d.detach() for name, d in deltas.items()})[1]
        start = dict(self.network.named_parameters())
        moved = {f"network.{name}": start[name] + (delta - delta.detach()) for name, delta in deltas.items()}
        with differentiable():
            outputs: Outputs = functional_call(Forward(self.network, run), moved, (plain(batch),))
        return Outputs(outputs.embedding + along.embedding, outputs.logits + along.logits, outputs.mask)

    def loss(self, outputs: Outputs, batch: Batch, labels: Tensor) -> Tensor:
        """Return the loss of each sample [B]: half the squared distance from a x one-hot, and the penalty, over a^2."""
        wanted = self.amplitude * nn.functional.one_hot(labels, outputs.logits.shape[1])
        squares = 0.5 * (outputs.logits - wanted).square().sum(1)
        length = 0.5 * self.penalty * self.vector().square().sum()
        return (squares + length) / self.amplitude**2
