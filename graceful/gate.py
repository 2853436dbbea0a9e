"""The gate: a report and constraints give a verdict, the same one anywhere, any time. Floats only; every process.

The unfavourable end of the 95 % interval decides, never the value: a metric bounded from above needs its upper end
within the bound, one bounded from below its lower end. What was not measured, or on too few ids, is held, with reasons.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

from graceful.catalogue import METRICS, About, Metric, shown
from graceful.constraints import ALL, LATEST, PAIR_METRICS, SELF, Constraint, Direction
from graceful.errors import DataError, SpecError
from graceful.proportions import minimum_n, quantile, wilson
from graceful.report import Comparison, Measurement, Report

SCHEMA = 1
FAMILIES = ("none", "bonferroni")


class Outcome(StrEnum):
    """Outcome of the gate. Held is not an error: the version is kept, with its reasons, and not promoted."""

    PASSED = "passed"
    HELD = "held"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One constraint against one ancestor (or the version itself).

    Attributes:
        constraint: What was asked.
        against: `self`, the ancestor's name, or, where there are no ancestors, what the constraint said.
        measurement: The evidence as reported; None where there is none.
        met: Whether it holds.
        reason: One line for people.
    """

    constraint: Constraint
    against: str
    measurement: Measurement | None
    met: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The decision, replayable from report and constraints.

    Attributes:
        outcome: `passed` if every finding is met.
        findings: In the order of the constraints, within one constraint nearest ancestor first.
        notes: How many intervals were judged and how; one sentence each.
    """

    outcome: Outcome
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Render as indented JSON with sorted keys; equal verdicts give equal bytes."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = "verdict") -> Self:
        """Read what `to_json` wrote.

        Raises:
            DataError: Not JSON, another schema, or a field is missing or unknown.
        """
        try:
            raw = json.loads(text)
            schema = raw.pop("schema", None)
            if schema != SCHEMA:
                raise DataError(f"{where}: schema is {schema!r}, this graceful reads {SCHEMA}; judge the report again")
            findings = tuple(_finding(item) for item in raw.pop("findings"))
            return cls(outcome=Outcome(raw.pop("outcome")), findings=findings, notes=tuple(raw.pop("notes")), **raw)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise DataError(f"{where}: not a verdict of graceful ({e}); judge the report again") from e


def _finding(raw: Mapping[str, Any]) -> Finding:
    constraint = {**raw["constraint"], "direction": Direction(raw["constraint"]["direction"])}
    measured = raw["measurement"]
    fields: dict[str, Any] = {
        **raw,
        "constraint": Constraint(**constraint),
        "measurement": None if measured is None else Measurement(**measured),
    }
    return Finding(**fields)


@dataclass(frozen=True, kw_only=True)
class _Question:
    """One interval to judge; no comparison and no measurements: vacuous."""

    constraint: Constraint
    against: str
    measurements: Mapping[str, Measurement] | None
    comparison: Comparison | None = None


def judge(report: Report, constraints: Sequence[Constraint], *, family: str = "none") -> Verdict:
    """Decide whether the new version may replace its predecessors.

    Args:
        report: Everything that was measured.
        constraints: What must hold; none: passed, and the notes say that nothing was asked.
        family: `none`: each interval at 95 %; `bonferroni`: all of them jointly at 95 %.

    Returns:
        The verdict; the same bytes for the same arguments.

    Raises:
        SpecError: An unknown family, a bound that is not finite, an ancestor or a metric that the report does not have.
    """
    if family not in FAMILIES:
        raise SpecError(f"gate.family: must be one of {', '.join(FAMILIES)}, got {family!r}")
    questions = [question for constraint in constraints for question in _questions(report, constraint)]
    judged = sum(question.measurements is not None for question in questions)
    z = quantile(judged) if family == "bonferroni" and judged > 1 else quantile()
    findings = tuple(_answer(report, question, z) for question in questions)
    outcome = Outcome.PASSED if all(finding.met for finding in findings) else Outcome.HELD
    return Verdict(outcome=outcome, findings=findings, notes=_notes(len(constraints), judged, family))


def _notes(constraints: int, judged: int, family: str) -> tuple[str, ...]:
    if not constraints:
        return ("no constraints: nothing was asked of this version",)
    jointly = "95 % jointly (bonferroni)" if family == "bonferroni" and judged > 1 else "95 % each"
    caveat = ", which is not 95 % jointly" if family == "none" and judged > 1 else ""
    return (f"constraints: {constraints}; intervals judged: {judged}, at {jointly}{caveat}",)


def _questions(report: Report, constraint: Constraint) -> list[_Question]:
    if not math.isfinite(constraint.bound):
        raise SpecError(f"gate: the bound on {constraint.metric} must be a finite number, got {constraint.bound}")
    if constraint.against == SELF:
        return [_about_itself(report, constraint)]
    if constraint.against in (ALL, LATEST):
        metric = _metric(report, constraint.metric)
        of_pairs = metric is not None and metric.about is About.PAIR
        nearest_first = sorted(report.pairs if of_pairs else report.ancestors, key=lambda item: item.distance)
        chosen = nearest_first[:1] if constraint.against == LATEST else nearest_first
        if not chosen:
            return [_Question(constraint=constraint, against=constraint.against, measurements=None)]
    else:
        chosen = [item for item in report.comparisons if item.against == constraint.against]
        if not chosen:
            known = ", ".join(item.against for item in report.comparisons) or "no ancestors"
            raise SpecError(
                f"gate: {constraint.metric} is bounded against {constraint.against!r}, which is not in the report of"
                f" {report.model} {report.version}; it has {known}"
            )
    _require_metric(report, constraint)
    return [
        _Question(constraint=constraint, against=item.against, measurements=item.measurements, comparison=item)
        for item in chosen
    ]


def _about_itself(report: Report, constraint: Constraint) -> _Question:
    metric = _metric(report, constraint.metric)
    if metric is not None and metric.about is About.CHAIN and not report.ancestors:
        return _Question(constraint=constraint, against=SELF, measurements=None)
    if constraint.metric not in report.measurements:
        elsewhere = any(constraint.metric in item.measurements for item in report.comparisons)
        raise _unknown(constraint, report.measurements, "write against: all" if elsewhere else None)
    return _Question(constraint=constraint, against=SELF, measurements=report.measurements)


def _metric(report: Report, name: str) -> Metric | None:
    """Return graceful's own metric, or another package's as the report has it: not as the package says today."""
    return METRICS.get(name) or report.metrics.get(name)


def _require_metric(report: Report, constraint: Constraint) -> None:
    known = {name for item in report.comparisons for name in item.measurements}
    if constraint.metric not in known:
        raise _unknown(constraint, known, "write against: self" if constraint.metric in report.measurements else None)


def _unknown(constraint: Constraint, known: Mapping[str, Measurement] | set[str], remedy: str | None) -> SpecError:
    near = difflib.get_close_matches(constraint.metric, sorted(known), n=3, cutoff=0.5)
    suggestion = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(sorted(known)) or 'none'}"
    where = f"metric {constraint.metric!r} against {constraint.against}"
    return SpecError(f"gate: the report has no {where}; {remedy or suggestion}")


def _answer(report: Report, question: _Question, z: float) -> Finding:
    metric = question.constraint.metric
    if question.measurements is None:
        absent = "no query model or gallery" if metric in PAIR_METRICS else "no ancestors"
        reason = f"{metric} against {question.against}: {absent} yet, met without evidence"
        return _judgement(question, None, met=True, reason=reason)
    measurement = question.measurements.get(metric)
    name = metric + ("" if question.against == SELF else f" against {question.against}")
    if measurement is not None and measurement.value is None and metric == "relative_nfr":
        errors = _errors(report, question)
        if errors.value == 0.0 and errors.n > 0:
            reason = f"{name}: the new version makes no error on {errors.n} ids, met"
            return _judgement(question, measurement, met=True, reason=reason)
    known = _metric(report, metric)
    unit = "" if known is None else known.unit
    missing = _missing(measurement, name, unit)
    if missing is not None or measurement is None:
        return _judgement(question, measurement, met=False, reason=f"{name}: {missing}")
    return _judged(question, measurement, name=name, unit=unit, z=z)


def _missing(measurement: Measurement | None, name: str, unit: str) -> str | None:
    """Return why there is nothing to judge; None where there is."""
    if measurement is None:
        return "not measured"
    if measurement.value is None:
        return f"undefined: {measurement.reason or 'no reason was recorded'}"
    if measurement.lower is None or measurement.upper is None:
        return f"{shown(measurement.value, unit)} without an interval; a value alone decides nothing"
    if not all(map(math.isfinite, (measurement.value, measurement.lower, measurement.upper))):
        raise DataError(f"gate: {name} is not a finite number ({measurement}); evaluate again")
    return None


def _judgement(question: _Question, measurement: Measurement | None, *, met: bool, reason: str) -> Finding:
    return Finding(
        constraint=question.constraint, against=question.against, measurement=measurement, met=met, reason=reason
    )


def _errors(report: Report, question: _Question) -> Measurement:
    """Return the error rate of the new version on the ids of the comparison, or on its own."""
    if question.comparison is not None and "new_error_rate" in question.comparison.measurements:
        return question.comparison.measurements["new_error_rate"]
    return report.measurements.get("error_rate", Measurement(value=None))


def _judged(question: _Question, measurement: Measurement, *, name: str, unit: str, z: float) -> Finding:
    constraint = question.constraint
    at_most = constraint.direction is Direction.AT_MOST
    end, scaled = _end(measurement, upper=at_most, z=z)
    met = {
        Direction.AT_MOST: end <= constraint.bound,
        Direction.AT_LEAST: end >= constraint.bound,
        Direction.ABOVE: end > constraint.bound,
    }[constraint.direction]
    poor = None if met else _too_few(constraint, measurement, unit, z)
    if poor:
        reason = f"{name}: insufficient evidence: {poor} ({_evidence(measurement, unit)})"
    else:
        side, verb = _WORDS[constraint.direction, met]
        judged, bound = _apart(end, constraint.bound, unit)
        reason = f"{name}: {side} end {judged} {verb} the bound {bound} ({_evidence(measurement, unit)})"
    if scaled:
        reason += "; interval scaled about its value for joint confidence, an approximation"
    if not met:
        reason += _infeasible(question)
    return _judgement(question, measurement, met=met, reason=reason)


_WORDS = {
    (Direction.AT_MOST, True): ("upper", "is within"),
    (Direction.AT_MOST, False): ("upper", "exceeds"),
    (Direction.AT_LEAST, True): ("lower", "reaches"),
    (Direction.AT_LEAST, False): ("lower", "is below"),
    (Direction.ABOVE, True): ("lower", "is above"),
    (Direction.ABOVE, False): ("lower", "is not above"),
}


def _is_proportion(measurement: Measurement) -> bool:
    value, count, n = measurement.value, measurement.count, measurement.n
    return value is not None and count is not None and 0 <= count <= n and n > 0 and abs(count / n - value) < 1e-9


def _end(measurement: Measurement, *, upper: bool, z: float) -> tuple[float, bool]:
    """Return the unfavourable end of the interval at quantile z, and whether it had to be scaled.

    A Wilson end is re-computed exactly. Any other end came from a bootstrap that a report cannot repeat: its distance
    from the value grows with the ratio of the quantiles, and it is never inside the re-computed Wilson end.
    """
    side = 1 if upper else 0
    reported, value = (measurement.lower, measurement.upper)[side], measurement.value
    assert reported is not None and value is not None, "callers have looked"  # noqa: PT018
    if z == quantile():
        return reported, False
    scaled = value + (reported - value) * z / quantile()
    if not _is_proportion(measurement) or measurement.count is None:
        return scaled, True
    exact = wilson(measurement.count, measurement.n, z)[side]
    if abs(reported - wilson(measurement.count, measurement.n)[side]) < 1e-9:
        return exact, False
    return (min(1.0, max(scaled, exact)) if upper else max(0.0, min(scaled, exact))), True


def _too_few(constraint: Constraint, measurement: Measurement, unit: str, z: float) -> str | None:
    """Return why this many ids could never show the bound, whatever the model does; None if they could."""
    if not _is_proportion(measurement):
        return None
    at_most = constraint.direction is Direction.AT_MOST
    needed = minimum_n(constraint.bound if at_most else 1.0 - constraint.bound, z)
    if needed is None or measurement.n >= needed:
        return None
    best = wilson(0, measurement.n, z)[1] if at_most else wilson(measurement.n, measurement.n, z)[0]
    reached, bound = _apart(best, constraint.bound, unit)
    return f"{measurement.n} ids can show {reached} at best, the bound {bound} needs {needed}"


def _infeasible(question: _Question) -> str:
    """Return the NFR >= ER_new - ER_old: say so where the bound asks for less than the accuracy that was lost."""
    if question.constraint.metric != "negative_flip_rate" or question.comparison is None:
        return ""
    new, old = (question.comparison.measurements.get(f"{side}_error_rate") for side in ("new", "old"))
    if new is None or old is None or new.value is None or old.value is None:
        return ""
    rise = new.value - old.value
    if rise <= question.constraint.bound:
        return ""
    return f"; infeasible at this error rate, which rose by {100 * rise:.2f} points"


def _evidence(measurement: Measurement, unit: str) -> str:
    value = "undefined" if measurement.value is None else shown(measurement.value, unit)
    if _is_proportion(measurement):
        return f"{value}, {measurement.count} of {measurement.n}"
    return f"{value}, n = {measurement.n}"


def _apart(end: float, bound: float, unit: str) -> tuple[str, str]:
    """Return both numbers with as many digits as it takes to tell them apart."""
    for digits in range(2, 9):
        pair = shown(end, unit, digits), shown(bound, unit, digits)
        if pair[0] != pair[1] or end == bound:
            break
    return pair
