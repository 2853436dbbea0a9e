"""Learning rate as a pure function of the step: linear warm-up, then cosine to zero or constant. Runs in workers.

Engines set the rate of this function before each step and keep no scheduler of their own, so resuming needs no
scheduler state and both engines agree by construction.
"""

from __future__ import annotations

import math
from typing import Literal


def learning_rate(
    step: int, *, total: int, base: float, warmup: float, schedule: Literal["cosine", "constant"] = "cosine"
) -> float:
    """Return the learning rate of one optimiser step.

    Args:
        step: The step, from 0.
        total: Optimiser steps of the whole run.
        base: Rate after the warm-up.
        warmup: Share of all steps that rise linearly; the first of them already has rate base / steps.
        schedule: What follows. Cosine reaches zero at `total`, which no step has, so every step moves the weights.

    Raises:
        ValueError: A step outside [0, total).
    """
    if not 0 <= step < total:
        raise ValueError(f"step must be in [0, {total}), got {step}")
    rising = min(round(warmup * total), total)
    if step < rising:
        return base * (step + 1) / rising
    if schedule == "constant":
        return base
    return base * 0.5 * (1.0 + math.cos(math.pi * (step - rising) / (total - rising)))
