"""The search space of `graceful tune` and the error rate that it must keep. Runs in every process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, create_model, model_validator

from graceful.losses import registry
from graceful.sections import Count, Section

Span = tuple[float, float]
"""Lower and upper end; equal ends fix the value."""


class _CommonSpace(Section):
    """What the search varies; what is left out is derived from `compatibility`."""

    reference: Span | None = None
    """Weight of the reference runs' outputs, log scale; None: [1, 60]."""
    runs: Annotated[tuple[Annotated[int, Field(ge=0, le=16)], ...] | None, Field(min_length=1)] = None
    """Numbers of reference runs to choose from; None: [0, 1, 3], where the spec has a reference: [1, 3, its own]."""
    decay: Span | None = None
    """`factor` of weighting decay; None: [0.3, 1]."""
    step: Span | None = None
    """`step` of weighting adaptive, log scale; None: [0.1, 2]."""
    against: Annotated[tuple[Literal["latest", "all"], ...] | None, Field(min_length=1)] = None
    """Which predecessors the losses see, to choose from; None: as in the spec."""
    interpolation: Annotated[
        Annotated[tuple[Annotated[float, Field(ge=0.0, lt=1.0)], ...], Field(min_length=1)] | None,
        Field(exclude_if=lambda shares: shares is None),
    ] = None
    """Shares of the latest predecessor's weights, each measured after every training; None: 0 to 0.5 in steps of 0.1
    with `train.start: latest`, else none."""

    @model_validator(mode="after")
    def _ordered(self) -> _CommonSpace:
        for name, (logarithmic, largest) in _spans().items():
            span = getattr(self, name)
            if span is None:
                continue
            low, high = span
            least = "above 0" if logarithmic else "at least 0"
            if low > high or low < 0.0 or (logarithmic and low == 0.0):
                raise ValueError(f"{name} must be [low, high] with low {least}, got [{low:g}, {high:g}]")
            if high > largest:
                raise ValueError(f"{name} must not exceed {largest:g}, got {high:g}")
        return self


def _spans() -> dict[str, tuple[bool, float]]:
    """Return of each range [low, high]: whether it has a log scale, and its largest value."""
    spans = {"reference": (True, 100.0), "decay": (True, 1.0), "step": (True, 10.0)}
    for loss in registry.searched():
        spans[loss.weight_name()] = (True, 100.0)
        spans |= {name: (key.log, key.largest) for name, key in loss.search_keys().items() if key.largest is not None}
    return spans


def _loss_keys() -> dict[str, Any]:
    """Return the keys that the losses announce: the weight of each, and its options."""
    keys: dict[str, Any] = {}
    for loss in registry.searched():
        low, high = loss.search_range or (0.0, 0.0)
        doc = f"Weight of {registry.kind_of(loss)}, log scale; None: [{low:g}, {high:g}]."
        keys[loss.weight_name()] = (Span | None, Field(default=None, description=doc))
        for name, key in loss.search_keys().items():
            keys[name] = (key.annotation | None, Field(default=None, description=key.doc))
    names = tuple(loss.weight_name() for loss in registry.searched() if loss.compares_outputs)
    doc = "How outputs are compared with the old version's, to choose from; None: distillation and displacement, and\n"
    "those of other packages that the spec has."
    choices = Annotated[tuple[Literal[names], ...], Field(min_length=1)]  # type: ignore[valid-type]
    return {"compare": (choices | None, Field(default=None, description=doc)), **keys}


if TYPE_CHECKING:

    class Space(_CommonSpace):
        """What the search varies, with one key for the weight of each kind of loss and keys for its options."""

        compare: tuple[str, ...] | None = None

else:
    Space = create_model("Space", __base__=_CommonSpace, __doc__=_CommonSpace.__doc__, **_loss_keys())


class Final(Section):
    """How the winner is chosen: with new seeds, on ids that the search never saw."""

    candidates: Count = 3
    """Best trials that are trained again; where none of them keeps the error rate, as many of those with most room."""
    seeds: Annotated[int, Field(ge=2, le=32)] = 3
    """Fresh seeds for each of them and for the unconstrained reference."""


class Tune(Section):
    """`graceful tune`: the lowest worst negative flip rate over the chain at an error rate that must be kept."""

    trials: Count = 24
    """Trainings of the search, besides reference runs and the final selection; more of them continue a search."""
    error: Literal["reference"] | Annotated[float, Field(gt=0.0, lt=1.0)] = "reference"
    """Error rate to keep: no worse than unconstrained reference runs of the same recipe, or an absolute one."""
    tolerance: Annotated[float, Field(ge=0.0, le=1.0)] = 0.03
    """Share of that error rate by which the upper bound of the error may exceed it: with an error of 9 % and 0.03, by
    0.27 points. With 0 a point must be shown to be better, which a few thousand ids can seldom do."""
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.8
    """One-sided, of that upper bound; 0.5: the measured error itself."""
    far: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Verification: threshold calibrated so that this share of impostor pairs is accepted. Flips are then genuine pairs
    that the old version accepted, errors those that are rejected; None: flips and errors of the classifier."""
    objectives: Literal["single", "front"] = "single"
    """front: trade off error, worst negative flip rate and cross-test retrieval; the result is all best compromises."""
    sampler: Literal["tpe", "random"] = "tpe"
    """random: the baseline that a search must beat."""
    space: Space = Space()
    final: Final = Final()
    max_concurrent: Count | None = None
    """Trials at a time; None: as many as there are cores, or as a cluster has room for. On a cluster, trials with
    train.num_workers 0 run one after the other, in the driver."""
