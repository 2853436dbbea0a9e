"""Leaky activations in place of those whose derivative is zero forever where they are off. Driver and workers."""

from __future__ import annotations

from torch import Tensor, nn


class LeakyClamp(nn.Module):
    """`clamp(x, 0, highest)` with a small slope where the clamp is flat.

    Args:
        slope: Derivative outside.
        highest: Upper end; None: there is none.
    """

    def __init__(self, slope: float, *, highest: float | None = None) -> None:
        super().__init__()
        self.slope, self.highest = slope, highest

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of a tensor of any shape."""
        inside = x.clamp(min=0.0, max=self.highest)
        return inside + self.slope * (x - inside)


def make_leaky(network: nn.Module, slope: float) -> int:
    """Replace the modules ReLU and ReLU6 of a network by leaky ones, in place.

    Args:
        network: Names of its tensors stay as they are, since these modules have none.
        slope: Derivative where they are off; 0: nothing is replaced.

    Returns:
        How many modules were replaced.
    """
    if slope == 0.0:
        return 0
    replaced = 0
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU | nn.ReLU6):
                setattr(module, name, LeakyClamp(slope, highest=6.0 if isinstance(child, nn.ReLU6) else None))
                replaced += 1
    return replaced
