"""What kind of optimisation makes a version: gradient descent, or a quadratic that is solved. Runs in every process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from graceful.sections import Count, Positive, Section

if TYPE_CHECKING:
    from graceful.spec.compatibility import Compatibility


class Descent(Section):
    """Steps of an optimiser on batches: all weights, from any start."""

    kind: Literal["descent"] = "descent"


class Lqf(Section):
    """Linear-quadratic fine-tuning: the network is linearised at its starting weights and solved for squared error.

    Of the section `train` it reads num_workers, batch_size (samples in one pass), checkpoint_every (iterations), start,
    class_weights, seed (of a random head) and limits; epochs, optimizer, schedule and engine have no part in it.
    """

    kind: Literal["lqf"] = "lqf"
    scope: tuple[str, ...] = ()
    """Parameters or modules that are linearised, by name or pattern, e.g. [body.encoder.layer.5, head]; the others stay
    at the starting weights. Empty: all that are trained."""
    head: Literal["auto", "start", "random"] = "auto"
    """Head of the starting weights. start: the predecessor's, refused where it was trained on these samples; random:
    drawn anew; auto: the predecessor's where it has the same classes and saw none of these samples, else random."""
    amplitude: Annotated[float, Field(gt=0.0, le=1000.0)] = 15.0
    """Target of the right class; the others have 0."""
    penalty: Positive | None = None
    """Weight of the squared length of delta. None: the one with the smallest leave-one-out error, or the smallest
    error on the validation split where the starting weights have seen the training samples."""
    slope: Annotated[float, Field(ge=0.0, le=0.5)] = 0.01
    """Of the modules ReLU and ReLU6 where they are off, since a derivative of zero stays zero; 0: left as they are."""
    refresh_norms: bool = False
    """Measure statistics of batch normalisation on the training samples before the network is linearised."""
    solver: Literal["auto", "exact", "pcg"] = "auto"
    """exact: factorise samples x classes; pcg: conjugate gradients; auto: exact up to 2,000 rows that fit in memory."""
    tolerance: Annotated[float, Field(gt=0.0, le=0.1)] = 5e-4
    """Of pcg: norm of the gradient as a share of the first one. Above 0.001 no version is called order-independent."""
    iterations: Count = 500
    """Of pcg, at most."""
    memory_gib: Annotated[float, Field(gt=0.0, le=4096.0)] = 2.0
    """That the exact solver may take; more is refused before it is allocated."""


Method = Annotated[Descent | Lqf, Field(discriminator="kind")]


def require_quadratic(compatibility: Compatibility, *, precision: str, start: str) -> None:
    """Refuse what a quadratic objective cannot hold.

    Raises:
        ValueError: Which key, and what to write.
    """
    if precision != "fp32":
        raise ValueError(f"train.precision must be fp32 with train.method lqf, got {precision}")
    if start == "head":
        raise ValueError("train.start must be random or latest with train.method lqf, got head")
    for position, loss in enumerate(compatibility.losses):
        if getattr(loss, "form", None) != "lm" or loss.follows_new_model:
            raise ValueError(
                f"compatibility.losses.{position}: {loss.kind} is not quadratic for train.method lqf; write"
                " {kind: focal_distillation, form: lm} with focus all or old_correct"
            )
    for key, given in (
        ("reference", compatibility.reference is not None),
        ("blend", compatibility.blend is not None),
        ("weighting: adaptive", compatibility.weighting.kind == "adaptive"),
        ("interpolation", compatibility.interpolation != 0.0),
    ):
        if given:
            raise ValueError(f"compatibility.{key} has no part in train.method lqf; leave it out")
