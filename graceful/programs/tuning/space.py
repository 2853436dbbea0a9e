"""What a search varies: parameters derived from the spec, and a point turned into a compatibility section. Pure.

The share of the old weights (`interpolation`) is not drawn: it costs no training, so each training is measured at all
of them and the best one is added to its point.

Scales that say the same twice are left out. Weights of a loss have mean 1, so alpha and beta count by their ratio
alone; under adaptive weighting the multipliers take the place of the losses' weight, and their step is searched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from graceful.losses import registry
from graceful.losses.base import Loss
from graceful.losses.search import Choice, Domain, Point, Span, Value
from graceful.spec import Compatibility, Reference, RefreshSpec, Space, Tune
from graceful.spec.methods import Method
from graceful.spec.search_counts import reference_choices

COMPARE = "compare"
"""Parameter that says which loss compares outputs with the old version's: a point has exactly one of them."""
BLEND, SHARE = "blend", "share"
"""The comparison where the spec has a blend, and the share of the old versions in its teacher."""
LARGEST_SHARE = 0.8
INTERPOLATION = "interpolation"
PENALTY = "penalty"
"""Factor of the penalty that linear-quadratic fine-tuning chooses."""
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Shares of the old weights that are tried; above one half the new version is mostly the old one."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One thing the search varies.

    Attributes:
        name: As points and `tune.space` name it.
        domain: Its values.
        given: Parameter and values under which it counts; None: always.
    """

    name: str
    domain: Domain
    given: tuple[str, tuple[Value, ...]] | None = None

    def counts(self, point: Point) -> bool:
        """Return whether the parameter matters at a point."""
        return self.given is None or point.get(self.given[0]) in self.given[1]


class Trial(Protocol):
    """What Optuna's trials offer."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a number."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return one of the choices."""
        ...


def parameters(spec: RefreshSpec) -> tuple[Parameter, ...]:
    """Return what the search of this spec varies, parameters before those that depend on them."""
    return tuple(_parameters(spec))


def _parameters(spec: RefreshSpec) -> Iterator[Parameter]:
    section, space = spec.compatibility, (spec.tune or Tune()).space
    written = {loss.kind: loss for loss in section.losses}
    if section.blend is not None:
        yield Parameter(name=COMPARE, domain=Choice(values=(BLEND,)))
        yield Parameter(name=SHARE, domain=Span(low=0.0, high=LARGEST_SHARE))
    adaptive = section.weighting.kind == "adaptive"
    compared = {loss.weight_name(): loss for loss in _comparing(spec)}
    if compared:
        yield Parameter(name=COMPARE, domain=Choice(values=tuple(compared)))
    for name, loss in compared.items() if not adaptive else ():
        yield Parameter(name=name, domain=_weight(loss, space), given=(COMPARE, (name,)))
    for name, loss in compared.items():
        for option, domain in loss.search_options(written.get(registry.kind_of(loss)), space).items():
            yield Parameter(name=option, domain=domain, given=(COMPARE, (name,)))
    for loss in registry.searched():
        written_loss = written.get(registry.kind_of(loss))
        if loss.compares_outputs or written_loss is None:
            continue
        yield Parameter(name=loss.weight_name(), domain=_weight(loss, space))
        for option, domain in loss.search_options(written_loss, space).items():
            yield Parameter(name=option, domain=domain)
    yield from _references(section, space.runs, space.reference)
    if section.weighting.kind == "decay":
        yield Parameter(name="decay", domain=Span.of(space.decay, (0.3, 1.0), log=False))
    if adaptive:
        yield Parameter(name="step", domain=Span.of(space.step, (0.1, 2.0)))
    if space.against is not None:
        yield Parameter(name="against", domain=Choice(values=space.against))
    if spec.train.method.kind == "lqf" and spec.train.method.penalty is None:
        yield Parameter(name=PENALTY, domain=Span(low=0.1, high=10.0))


def _comparing(spec: RefreshSpec) -> tuple[type[Loss], ...]:
    """Return the losses of which a point has one: those written in `tune.space.compare`; else graceful's own and those
    of other packages that the spec itself has; none beside a blend."""
    if spec.compatibility.blend is not None:
        return ()
    compare = (spec.tune or Tune()).space.compare
    spec_kinds = {loss.kind for loss in spec.compatibility.losses}
    alternatives = [loss for loss in registry.searched() if loss.compares_outputs]
    if compare is not None:
        by_weight_name = {loss.weight_name(): loss for loss in alternatives}
        return tuple(by_weight_name[name] for name in compare)
    return tuple(loss for loss in alternatives if registry.is_own(loss) or registry.kind_of(loss) in spec_kinds)


def _weight(loss: type[Loss], space: Space) -> Span:
    assert loss.search_range is not None
    return Span.of(getattr(space, loss.weight_name()), loss.search_range)


def shares(spec: RefreshSpec) -> tuple[float, ...]:
    """Return the shares of the latest predecessor's weights at which each training is measured; none where training
    starts at
    random."""
    if spec.train.start != "latest" or spec.train.method.kind == "lqf":
        return ()
    interpolation = (spec.tune or Tune()).space.interpolation
    return tuple(sorted(set(interpolation or (*SHARES, spec.compatibility.interpolation))))


def _references(
    section: Compatibility, written_runs: tuple[int, ...] | None, weight: tuple[float, float] | None
) -> Iterator[Parameter]:
    runs = reference_choices(section, written_runs)
    yield Parameter(name="runs", domain=Choice(values=runs))
    above_zero = tuple(count for count in runs if count)
    if above_zero and section.blend is None:
        yield Parameter(name="reference", domain=Span.of(weight, (1.0, 60.0)), given=("runs", above_zero))


def draw(trial: Trial, space: Sequence[Parameter]) -> dict[str, Value]:
    """Ask for a point, parameter by parameter."""
    point: dict[str, Value] = {}
    for parameter in space:
        if not parameter.counts(point):
            continue
        name, domain = parameter.name, parameter.domain
        if isinstance(domain, Choice):
            point[name] = trial.suggest_categorical(name, domain.values)
        else:
            point[name] = trial.suggest_float(name, domain.low, domain.high, log=domain.log)
    return point


def within(point: Point, space: Sequence[Parameter]) -> dict[str, Value]:
    """Return the nearest point of the space: numbers are clipped, a choice that it lacks becomes its last one."""
    nearest: dict[str, Value] = {}
    for parameter in space:
        if not parameter.counts(nearest):
            continue
        name, domain = parameter.name, parameter.domain
        if isinstance(domain, Choice):
            choice = point.get(name)
            nearest[name] = choice if choice in domain.values else domain.values[-1]
        else:
            middle = (domain.low * domain.high) ** 0.5 if domain.log else domain.low
            nearest[name] = min(max(float(point.get(name, middle)), domain.low), domain.high)
    return nearest


def known_points(spec: RefreshSpec, space: Sequence[Parameter]) -> list[dict[str, Value]]:
    """Return the points tried first: the spec as written, and weights that have worked, moved into the space."""
    most = {"runs": max(_runs(space), default=0)}
    candidates: list[Point] = [written(spec)]
    options = {parameter.name: parameter.domain for parameter in space}
    for loss in _comparing(spec):
        candidates += [{COMPARE: loss.weight_name(), **point, **most} for point in loss.known_points(options)]
    points: list[dict[str, Value]] = []
    for point in candidates:
        nearest = within(point, space)
        if nearest not in points:
            points.append(nearest)
    return points


def _runs(space: Sequence[Parameter]) -> tuple[int, ...]:
    domain = next(parameter.domain for parameter in space if parameter.name == "runs")
    assert isinstance(domain, Choice)
    return tuple(int(count) for count in domain.values)


def most_runs(space: Sequence[Parameter]) -> int:
    """Return how many reference runs must exist before the first trial: at least one, to compare with."""
    return max(1, *_runs(space))


def written(spec: RefreshSpec) -> dict[str, Value]:
    """Return the point at which the spec is as it is written; without the share of a blend that is chosen later."""
    section, point = spec.compatibility, dict[str, Value]()
    if section.blend is not None:
        point |= {COMPARE: BLEND, "runs": section.blend.runs}
        if isinstance(section.blend.share, float):
            point[SHARE] = section.blend.share
    for loss in section.losses:
        if loss.search_range is None:
            continue
        point |= {loss.weight_name(): loss.weight, **loss.search_values()}
        if loss.compares_outputs:
            point[COMPARE] = loss.weight_name()
    if section.reference is not None:
        point |= {"runs": section.reference.runs, "reference": section.reference.weight}
    if section.weighting.kind == "decay":
        point["decay"] = section.weighting.factor
    if section.weighting.kind == "adaptive":
        point["step"] = section.weighting.step
    if isinstance(section.against, str):
        point["against"] = section.against
    if spec.train.method.kind == "lqf":
        point[PENALTY] = spec.train.method.penalty_factor
    return point


def method(spec: RefreshSpec, point: Point) -> Method:
    """Return the method of a spec that a point stands for."""
    written_method = spec.train.method
    if written_method.kind != "lqf" or PENALTY not in point:
        return written_method
    return written_method.model_copy(update={"penalty_factor": float(point[PENALTY])})


def compatibility(spec: RefreshSpec, point: Point) -> Compatibility:
    """Return the section of a spec that a point stands for; what the search does not vary is as written.

    Raises:
        pydantic.ValidationError: Never for points of the space.
    """
    section = spec.compatibility
    other_losses = tuple(_reweighted(loss, point) for loss in section.losses if not loss.compares_outputs)
    reference, blend = None, section.blend
    if blend is not None:
        blend = blend.model_copy(update={"share": float(point[SHARE]), "runs": int(point["runs"])})
    elif int(point["runs"]):
        written = section.reference or Reference()
        reference = written.model_copy(update={"runs": int(point["runs"]), "weight": float(point["reference"])})
    weighting = section.weighting
    for name, key in (("decay", "factor"), ("step", "step")):
        if name in point:
            weighting = weighting.model_copy(update={key: float(point[name])})
    return Compatibility(
        against=point.get("against", section.against),  # type: ignore[arg-type]
        losses=other_losses if blend is not None else (_compared(spec, point), *other_losses),
        weighting=weighting,
        near_chance=section.near_chance,
        reference=reference,
        blend=blend,
        targets=section.targets,
        interpolation=float(point.get(INTERPOLATION, section.interpolation)),
    )


def _compared(spec: RefreshSpec, point: Point) -> Loss:
    """Return the loss that compares outputs, with the spec's own options where it has that kind."""
    kind = next(loss for loss in _comparing(spec) if loss.weight_name() == point[COMPARE])
    return _at(kind, next((loss for loss in spec.compatibility.losses if type(loss) is kind), None), point)


def _reweighted(loss: Loss, point: Point) -> Loss:
    return _at(type(loss), loss, point) if loss.weight_name() in point else loss


def _at(kind: type[Loss], written: Loss | None, point: Point) -> Loss:
    options: dict[str, Any] = {} if written is None else written.model_dump()
    weight = point.get(kind.weight_name())
    return kind.at(point, options if weight is None else {**options, "weight": float(weight)})
