"""What a search varies: parameters derived from the spec, and a point turned into a compatibility section. Pure.

The share of the old weights (`interpolation`) is not drawn: it costs no training, so each training is measured at all
of them and the best one is added to its point.

Scales that say the same twice are left out. Weights of a loss have mean 1, so alpha and beta count by their ratio
alone; under adaptive weighting the multipliers take the place of the losses' weight, and their step is searched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from graceful.spec import (
    Compatibility,
    EmbeddingRegression,
    FocalDistillation,
    Influence,
    LogitDisplacement,
    Loss,
    Reference,
    RefreshSpec,
    Tune,
)

Value = float | int | str
Point = Mapping[str, Value]
"""Parameter name -> value; only the parameters that count at this point."""

LM = "lm"
COMPARE = {"distillation": FocalDistillation, "displacement": LogitDisplacement}
"""The losses that compare outputs with the old version's: a point has one of them."""
LARGEST_SHARE = 0.9
"""beta 9 x alpha; 10 x is the most that a spec allows."""
INTERPOLATION = "interpolation"
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Above one half the new version is mostly the old one."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A number in [low, high].

    Attributes:
        low: Lower end.
        high: Upper end.
        log: Whether ratios count rather than differences.
    """

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:g}"
        return f"[{self.low:g}, {self.high:g}]{' log' if self.log else ''}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of a few values."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One thing the search varies.

    Attributes:
        name: As points and `tune.space` name it.
        domain: Its values.
        given: Parameter and values under which it counts; None: always.
    """

    name: str
    domain: Span | Choice
    given: tuple[str, tuple[Value, ...]] | None = None

    def counts(self, point: Point) -> bool:
        """Whether it matters at a point."""
        return self.given is None or point.get(self.given[0]) in self.given[1]


class Asked(Protocol):
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
    has = {loss.kind: loss for loss in owed.losses}
    adaptive = owed.weighting.kind == "adaptive"
    compare = space.compare or ("distillation", "displacement")
    yield Parameter(name="compare", domain=Choice(values=compare))
    for name, default in (("distillation", (0.3, 30.0)), ("displacement", (0.1, 10.0))):
        if name in compare and not adaptive:
            yield Parameter(name=name, domain=_span(getattr(space, name), default), given=("compare", (name,)))
    if "distillation" in compare:
        spoken = has.get("focal_distillation")
        assert spoken is None or isinstance(spoken, FocalDistillation)
        flat = spoken is not None and spoken.focus == "all"
        share = _span(space.focus_share, (0.0, 0.0) if flat else (0.0, LARGEST_SHARE), log=False)
        yield Parameter(name="focus_share", domain=share, given=("compare", ("distillation",)))
        low = spoken is not None and spoken.allow_low_temperature
        given = space.temperature or ((2.0, 20.0, 100.0, "lm") if low else (20.0, 100.0, "lm"))
        named = tuple(one if isinstance(one, str) else f"{one:g}" for one in given)
        yield Parameter(name="temperature", domain=Choice(values=named), given=("compare", ("distillation",)))
    if "displacement" in compare:
        margin = _span(space.margin, (0.0, 1.0), log=False)
        yield Parameter(name="margin", domain=margin, given=("compare", ("displacement",)))
    if "influence" in has:
        yield Parameter(name="influence", domain=_span(space.influence, (0.3, 10.0)))
    if "embedding_regression" in has:
        yield Parameter(name="regression", domain=_span(space.regression, (0.5, 10.0)))
    yield from _references(owed, space.runs, space.reference)
    if owed.weighting.kind == "decay":
        yield Parameter(name="decay", domain=_span(space.decay, (0.3, 1.0), log=False))
    if adaptive:
        yield Parameter(name="step", domain=_span(space.step, (0.1, 2.0)))
    if space.against is not None:
        yield Parameter(name="against", domain=Choice(values=space.against))


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
        yield Parameter(name="reference", domain=_span(weight, (1.0, 60.0)), given=("runs", some))


def _span(written: tuple[float, float] | None, default: tuple[float, float], *, log: bool = True) -> Span:
    low, high = written or default
    return Span(low=low, high=high, log=log and low < high)


def draw(trial: Asked, space: Sequence[Parameter]) -> dict[str, Value]:
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
    most = {"runs": max((one for one in _runs(space)), default=0)}
    even: dict[str, Value] = {"distillation": 5.0, "focus_share": 0.0, "temperature": lowest_temperature(space)}
    focused: dict[str, Value] = {"distillation": 4.0, "focus_share": 0.8, "temperature": LM}
    started: list[Point] = [
        _written(spec),
        {"compare": "distillation", **even, "reference": 25.0, **most},
        {"compare": "distillation", **focused, "reference": 30.0, **most},
        {"compare": "displacement", "displacement": 3.0, "margin": 0.5, "reference": 30.0, **most},
    ]
    found: list[dict[str, Value]] = []
    for point in started:
        near = within(point, space)
        if near not in found:
            found.append(near)
    return found


def lowest_temperature(space: Sequence[Parameter]) -> str:
    """Of those to choose from; lm only where there is no other."""
    domain = next((one.domain for one in space if one.name == "temperature"), None)
    values = [str(one) for one in domain.values if one != LM] if isinstance(domain, Choice) else []
    return min(values, key=float, default=LM)


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
        match loss:
            case FocalDistillation():
                share = 0.0 if loss.focus == "all" else loss.beta / (loss.alpha + loss.beta)
                temperature = LM if loss.form == LM else f"{loss.temperature:g}"
                point.update(compare="distillation", distillation=loss.weight, focus_share=share)
                point["temperature"] = temperature
            case LogitDisplacement():
                point.update(compare="displacement", displacement=loss.weight, margin=loss.margin)
            case Influence():
                point["influence"] = loss.weight
            case EmbeddingRegression():
                point["regression"] = loss.weight
            case _:
                pass
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
    others = [_reweighted(loss, point) for loss in owed.losses if not isinstance(loss, tuple(COMPARE.values()))]
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
        losses=(_compared(owed, point), *others),
        weighting=weighting,
        near_chance=owed.near_chance,
        reference=reference,
        targets=owed.targets,
        interpolation=float(point.get(INTERPOLATION, owed.interpolation)),
    )


def _compared(owed: Compatibility, point: Point) -> Loss:
    """The loss that compares outputs, with the spec's own options where it has that kind."""
    kind = COMPARE[str(point["compare"])]
    before = next((loss for loss in owed.losses if isinstance(loss, kind)), None)
    options: dict[str, Any] = {} if before is None else before.model_dump()
    options |= {"weight": float(point[str(point["compare"])])} if str(point["compare"]) in point else {}
    if kind is LogitDisplacement:
        return LogitDisplacement(**{**options, "margin": float(point["margin"])})
    share, temperature = float(point["focus_share"]), str(point["temperature"])
    options |= {"alpha": 1.0, "beta": share / (1.0 - share)}
    if temperature == LM:
        return FocalDistillation(**{**options, "form": LM})
    degrees = float(temperature)
    low = {"allow_low_temperature": True} if degrees < 20.0 else {}
    return FocalDistillation(**{**options, "form": "kl", "temperature": degrees, **low})


def _reweighted(loss: Loss, point: Point) -> Loss:
    name = {"influence": "influence", "embedding_regression": "regression"}.get(loss.kind, "")
    return loss.model_copy(update={"weight": float(point[name])}) if name in point else loss
