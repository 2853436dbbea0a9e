"""The random state of a step: a function of seed, step and rank, so that nothing random needs saving. In workers."""

from __future__ import annotations

import numpy as np
import torch


def reseed(*parts: int, device: torch.device) -> None:
    """Seed what computes here, by all of the numbers.

    `torch.manual_seed` would seed every kind of accelerator that torch knows, and record a stack for each that is
    absent, which took a tenth of a small network's step.
    """
    seed = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
