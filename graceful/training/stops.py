"""What a loop counts, and the refusal of losses that are not finite. Runs in workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from graceful.errors import GracefulError, NonFiniteError
from graceful.training.rank_context import unanimous


@dataclass
class Progress:
    """What changes while training, besides weights and focus means; saved with every checkpoint."""

    step: int = 0
    loss_sum: float = 0.0
    right: int = 0
    streak: int = 0
    validation_error: float = 1.0
    former_error: float = 1.0


def of_step(error: NonFiniteError, *, step: int, epoch: int) -> GracefulError:
    """Return an error about a gradient with the step it belongs to; all ranks raise it alike."""
    return unanimous(NonFiniteError(f"step {step + 1}, epoch {epoch + 1}: {error.message}", {"step": step + 1}))


def require_finite(
    means: Mapping[str, float], *, step: int, epoch: int, culprit: Callable[[], str | None] = lambda: None
) -> None:
    """Refuse the losses of a step.

    Args:
        means: Name -> mean over ranks, `total` among them.
        step: Counted from 0.
        epoch: Counted from 0.
        culprit: Id of a training sample of this step whose input is not finite; asked by all ranks alike if a loss is
            not.

    Raises:
        NonFiniteError: On all ranks alike.
    """
    bad = [name for name, number in means.items() if not math.isfinite(number)]
    if not bad:
        return
    name = next((name for name in bad if name != "total"), "total")
    where, facts = f"step {step + 1}, epoch {epoch + 1}: loss {name} is {means[name]}", {"step": step + 1, "part": name}
    sample = culprit()
    if sample is not None:
        raise unanimous(
            NonFiniteError(
                f"{where}: sample {sample!r} of train holds NaN or infinity after transform(); correct the data, or"
                " transform()",
                {**facts, "sample": sample},
            )
        )
    remedy = (
        "lower train.optimizer.lr, or keep train.clip above 0"
        if name in ("task", "total")
        else f"lower the weight of {name.partition('/')[0]}, or train.optimizer.lr"
    )
    raise unanimous(NonFiniteError(f"{where}, must be finite; {remedy}", facts))
