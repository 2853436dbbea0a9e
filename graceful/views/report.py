"""The report as one self-contained HTML page with pictures: no scripts, no network. Runs in the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graceful import catalogue
from graceful.gate import Verdict
from graceful.report import Measurement, Report
from graceful.views import constraints as constraint_report
from graceful.views.rendering import render

if TYPE_CHECKING:
    from graceful.programs.outputs.flipped import Flip

BAR_LEFT, BAR_WIDTH, ROW_HEIGHT = 150, 560, 34
PAIRED = ("pair_map", "pair_query_alone_map", "pair_paragon_map", "pair_reversed_map", "pair_gain_map",
          "pair_share_map", "pair_recall_at_1")  # fmt: skip
HEADLINE = ("negative_flip_rate", "positive_flip_rate", "relative_nfr", "cross_test_recall_at_1", "cross_test_map")


@dataclass(frozen=True, kw_only=True)
class Bar:
    """The NFR against one ancestor: a bar, its interval as a whisker, the gate's bound as a line; in pixels.

    Attributes:
        name: The ancestor.
        rate: What was measured.
        bound: The gate's; None: there is none.
        top: Upper edge.
        width: From `BAR_LEFT` to the value.
        whisker: Where the interval begins and ends.
        mark: Where the bound is.
        fill: Colour.
    """

    name: str
    rate: Measurement
    bound: float | None
    top: int
    width: float
    whisker: tuple[float, float]
    mark: float
    fill: str


def render_report(
    report: Report,
    verdict: Verdict,
    *,
    flips: Sequence[Flip] = (),
    pictures: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
    constraints: Mapping[str, Any] | None = None,
) -> str:
    """Return the page of a report and its verdict.

    Args:
        report: The evidence.
        verdict: What the gate made of it.
        flips: Negative flips to show, worst first.
        pictures: Sample id -> image as a data URI.
        texts: Sample id -> text of a sample that is not an image.
        constraints: The constraint report, where there is one.
    """
    return render(
        "report.html.j2",
        report=report,
        verdict=verdict,
        bars=_bars(report, verdict),
        bar_left=BAR_LEFT,
        bar_right=BAR_LEFT + BAR_WIDTH,
        row_height=ROW_HEIGHT,
        constraints=constraint_report.sections(constraints) if constraints and report.ancestors else None,
        flips=flips,
        pictures=pictures or {},
        texts=texts or {},
        headline=HEADLINE,
        paired=PAIRED,
        measurements=_measurement_rows(report),
    )


def _bars(report: Report, verdict: Verdict) -> list[Bar]:
    bounds = {
        finding.against: finding.constraint.bound
        for finding in verdict.findings
        if finding.constraint.metric == "negative_flip_rate"
    }
    rates = {
        item.against: item.measurements["negative_flip_rate"]
        for item in report.ancestors
        if "negative_flip_rate" in item.measurements  # of adapters there is none
    }
    highest = max([rate.upper or 0.0 for rate in rates.values()] + list(bounds.values()) + [0.001]) * 1.15
    return [
        _bar(name, rate, bounds.get(name), top=index * ROW_HEIGHT + 6, highest=highest)
        for index, (name, rate) in enumerate(rates.items())
    ]


def _bar(name: str, rate: Measurement, bound: float | None, *, top: int, highest: float) -> Bar:
    value, lower, upper, mark = (
        BAR_LEFT + BAR_WIDTH * (share or 0.0) / highest for share in (rate.value, rate.lower, rate.upper, bound)
    )
    beyond = bound is not None and (rate.upper or 0.0) > bound
    return Bar(
        name=name,
        rate=rate,
        bound=bound,
        top=top,
        width=value - BAR_LEFT,
        whisker=(lower, upper),
        mark=mark,
        fill="#e0a458" if beyond else "#6aa9a0",
    )


def _measurement_rows(report: Report) -> list[tuple[str, ...]]:
    sections = [("alone", report.measurements)]
    sections += [(f"against {item.against}", item.measurements) for item in report.comparisons]
    with catalogue.recorded(report.metrics):
        return [
            _measurement_row(of, name, measurement, catalogue.unit_of(name))
            for of, measurements in sections
            for name, measurement in measurements.items()
        ]


def _measurement_row(of: str, name: str, measurement: Measurement, unit: str) -> tuple[str, ...]:
    value = "-" if measurement.value is None else catalogue.shown(measurement.value, unit)
    ends = (measurement.lower, measurement.upper)
    interval = "-" if None in ends else " .. ".join(catalogue.shown(end, unit) for end in ends if end is not None)
    return (name, of, value, interval, str(measurement.n), measurement.reason or "")
