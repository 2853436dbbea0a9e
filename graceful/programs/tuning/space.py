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

COMPARE = "compare"
"""Parameter that says which loss compares outputs with the old version's: a point has exactly one of them."""
INTERPOLATION = "interpolation"
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Above one half the new version is mostly the old one."""


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
        """Whether it matters at a point."""
        return self.given is None or point.get(self.given[0]) in self.given[1]


class Trial(Protocol):
    """What Optuna's trials offer."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""
        ...


def parameters(spec: RefreshSpec) -> tuple[Parameter, ...]:
    """What the search of this spec varies, parameters before those that depend on them."""
    return tuple(_parameters(spec))


def _parameters(spec: RefreshSpec) -> Iterator[Parameter]:
    owed, space = spec.compatibility, (spec.tune or Tune()).space
    written = {loss.kind: loss for loss in owed.losses}
    adaptive = owed.weighting.kind == "adaptive"
    compared = {loss.weight_name(): loss for loss in _comparing(spec)}
    yield Parameter(name=COMPARE, domain=Choice(values=tuple(compared)))
    for name, loss in compared.items() if not adaptive else ():
        yield Parameter(name=name, domain=_weight(loss, space), given=(COMPARE, (name,)))
    for name, loss in compared.items():
        for option, domain in loss.search_options(written.get(registry.kind_of(loss)), space).items():
            yield Parameter(name=option, domain=domain, given=(COMPARE, (name,)))
    for loss in registry.searched():
        mine = written.get(registry.kind_of(loss))
        if loss.compares_outputs or mine is None:
            continue
        yield Parameter(name=loss.weight_name(), domain=_weight(loss, space))
        for option, domain in loss.search_options(mine, space).items():
            yield Parameter(name=option, domain=domain)
    yield from _references(owed, space.runs, space.reference)
    if owed.weighting.kind == "decay":
        yield Parameter(name="decay", domain=Span.of(space.decay, (0.3, 1.0), log=False))
    if adaptive:
        yield Parameter(name="step", domain=Span.of(space.step, (0.1, 2.0)))
    if space.against is not None:
        yield Parameter(name="against", domain=Choice(values=space.against))


def _comparing(spec: RefreshSpec) -> tuple[type[Loss], ...]:
    """Return the losses of which a point has one: those written in `tune.space.compare`; else graceful's own and those
    of other packages that the spec itself has."""
    wanted = (spec.tune or Tune()).space.compare
    has = {loss.kind for loss in spec.compatibility.losses}
    alternatives = [loss for loss in registry.searched() if loss.compares_outputs]
    if wanted is not None:
        named = {loss.weight_name(): loss for loss in alternatives}
        return tuple(named[name] for name in wanted)
    return tuple(loss for loss in alternatives if registry.is_own(loss) or registry.kind_of(loss) in has)


def _weight(loss: type[Loss], space: Space) -> Span:
    assert loss.search_range is not None
    return Span.of(getattr(space, loss.weight_name()), loss.search_range)


def shares(spec: RefreshSpec) -> tuple[float, ...]:
    """Shares of the latest predecessor's weights at which each training is measured; none where training starts at
    random."""
    if spec.train.start == "random":
        return ()
    asked = (spec.tune or Tune()).space.interpolation
    return tuple(sorted(set(asked or (*SHARES, spec.compatibility.interpolation))))


def _references(
    owed: Compatibility, chosen: tuple[int, ...] | None, weight: tuple[float, float] | None
) -> Iterator[Parameter]:
    default = (0, 1, 3) if owed.reference is None else tuple(sorted({1, 3, owed.reference.runs}))
    if owed.targets.mode == "live":  # live predecessors have no cache for reference runs
        default = (0,)
    runs = chosen or default
    yield Parameter(name="runs", domain=Choice(values=runs))
    some = tuple(one for one in runs if one)
    if some:
        yield Parameter(name="reference", domain=Span.of(weight, (1.0, 60.0)), given=("runs", some))


def draw(trial: Trial, space: Sequence[Parameter]) -> dict[str, Value]:
    """Ask for a point, parameter by parameter."""
    point: dict[str, Value] = {}
    for one in space:
        if not one.counts(point):
            continue
        if isinstance(one.domain, Choice):
            point[one.name] = trial.suggest_categorical(one.name, one.domain.values)
        else:
            point[one.name] = trial.suggest_float(one.name, one.domain.low, one.domain.high, log=one.domain.log)
    return point


def within(point: Point, space: Sequence[Parameter]) -> dict[str, Value]:
    """The nearest point of the space: numbers are clipped, choices that it has not become its last one."""
    near: dict[str, Value] = {}
    for one in space:
        if not one.counts(near):
            continue
        if isinstance(one.domain, Choice):
            wanted = point.get(one.name)
            near[one.name] = wanted if wanted in one.domain.values else one.domain.values[-1]
        else:
            middle = (one.domain.low * one.domain.high) ** 0.5 if one.domain.log else one.domain.low
            near[one.name] = min(max(float(point.get(one.name, middle)), one.domain.low), one.domain.high)
    return near


def known_points(spec: RefreshSpec, space: Sequence[Parameter]) -> list[dict[str, Value]]:
    """Where a search begins: the spec as written, and treatments that have worked, as near as the space has them."""
    most = {"runs": max(_runs(space), default=0)}
    started: list[Point] = [_written(spec)]
    options = {one.name: one.domain for one in space}
    for loss in _comparing(spec):
        started += [{COMPARE: loss.weight_name(), **point, **most} for point in loss.known_points(options)]
    found: list[dict[str, Value]] = []
    for point in started:
        near = within(point, space)
        if near not in found:
            found.append(near)
    return found


def _runs(space: Sequence[Parameter]) -> tuple[int, ...]:
    domain = next(one.domain for one in space if one.name == "runs")
    assert isinstance(domain, Choice)
    return tuple(int(one) for one in domain.values)


def most_runs(space: Sequence[Parameter]) -> int:
    """Reference runs that have to exist before the first trial: at least one, to compare with."""
    return max(1, *_runs(space))


def _written(spec: RefreshSpec) -> dict[str, Value]:
    owed, point = spec.compatibility, dict[str, Value]()
    for loss in owed.losses:
        if loss.search_range is None:
            continue
        point |= {loss.weight_name(): loss.weight, **loss.search_values()}
        if loss.compares_outputs:
            point[COMPARE] = loss.weight_name()
    if owed.reference is not None:
        point |= {"runs": owed.reference.runs, "reference": owed.reference.weight}
    if owed.weighting.kind == "decay":
        point["decay"] = owed.weighting.factor
    if owed.weighting.kind == "adaptive":
        point["step"] = owed.weighting.step
    if isinstance(owed.against, str):
        point["against"] = owed.against
    return point


def compatibility(spec: RefreshSpec, point: Point) -> Compatibility:
    """The section of a spec that a point stands for; what the search does not vary is as written.

    Raises:
        pydantic.ValidationError: Never for points of the space.
    """
    owed = spec.compatibility
    others = tuple(_reweighted(loss, point) for loss in owed.losses if not loss.compares_outputs)
    reference = None
    if int(point["runs"]):
        before = owed.reference or Reference()
        reference = before.model_copy(update={"runs": int(point["runs"]), "weight": float(point["reference"])})
    weighting = owed.weighting
    for name, key in (("decay", "factor"), ("step", "step")):
        if name in point:
            weighting = weighting.model_copy(update={key: float(point[name])})
    return Compatibility(
        against=point.get("against", owed.against),  # type: ignore[arg-type]
        losses=(_compared(spec, point), *others),
        weighting=weighting,
        near_chance=owed.near_chance,
        reference=reference,
        targets=owed.targets,
        interpolation=float(point.get(INTERPOLATION, owed.interpolation)),
    )


def _compared(spec: RefreshSpec, point: Point) -> Loss:
    """The loss that compares outputs, with the spec's own options where it has that kind."""
    kind = next(loss for loss in _comparing(spec) if loss.weight_name() == point[COMPARE])
    return _at(kind, next((loss for loss in spec.compatibility.losses if type(loss) is kind), None), point)


def _reweighted(loss: Loss, point: Point) -> Loss:
    return _at(type(loss), loss, point) if loss.weight_name() in point else loss


def _at(kind: type[Loss], written: Loss | None, point: Point) -> Loss:
    options: dict[str, Any] = {} if written is None else written.model_dump()
    weight = point.get(kind.weight_name())
    return kind.at(point, options if weight is None else {**options, "weight": float(weight)})
