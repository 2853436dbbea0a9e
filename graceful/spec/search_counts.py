"""How many models a search trains, for those who announce it without the search. Pure functions. Client and driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graceful.losses import registry
from graceful.spec.compatibility import Compatibility
from graceful.spec.tune import Tune

if TYPE_CHECKING:
    from graceful.spec.refresh import RefreshSpec


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """Models that a search trains.

    Attributes:
        trials: Of the search itself.
        reference_runs: Without constraints, for the search and for the final selection.
        final_fits: Of the best trials again, with fresh seeds.
    """

    trials: int
    reference_runs: int
    final_fits: int

    @property
    def total(self) -> int:
        """Return all of them."""
        return self.trials + self.reference_runs + self.final_fits


def reference_choices(section: Compatibility, written: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the numbers of reference runs that a search chooses from.

    Args:
        section: Of the spec that is searched.
        written: `tune.space.runs`.
    """
    if section.blend is not None:
        return tuple(count for count in written or () if count) or (section.blend.runs,)
    default = (0, 1, 3) if section.reference is None else tuple(sorted({1, 3, section.reference.runs}))
    if section.targets.mode == "live":  # live predecessors have no cache for reference runs
        default = (0,)
    return written or default


def tune_of(spec: RefreshSpec) -> Tune:
    """Return the `tune` section of a spec, its defaults where there is none.

    Of linear-quadratic fine-tuning only what keeps the objective quadratic is searched: logit matching, without
    reference runs.
    """
    tune = spec.tune or Tune()
    if spec.train.method.kind != "lqf":
        return tune
    losses = [loss for loss in registry.kinds().values() if loss.quadratic_space is not None]
    quadratic = {"runs": (0,), "compare": tuple(loss.weight_name() for loss in losses)}
    for loss in losses:
        quadratic |= loss.quadratic_space or {}
    return tune.model_copy(update={"space": tune.space.model_copy(update=quadratic)})


def trainings(tune: Tune, section: Compatibility) -> Trainings:
    """Return how many models a search trains; at least one reference run is what trials are compared with."""
    references = max(1, *reference_choices(section, tune.space.runs))
    candidates = 0 if tune.objectives == "front" else tune.final.candidates
    seeds = tune.final.seeds if candidates else 0
    return Trainings(trials=tune.trials, reference_runs=references * (1 + seeds), final_fits=candidates * seeds)
