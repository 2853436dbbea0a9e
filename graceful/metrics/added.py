"""Measure the metrics of other packages, see `graceful.catalogue.others`. Runs in the driver.

What such a metric's function raises, and values that its row rules out, make that measurement undefined, with the
package's words as the reason; a constraint on it is then held. All else of the evaluation goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from graceful import catalogue
from graceful.catalogue import About, Metric
from graceful.errors import GracefulError
from graceful.metrics.inputs import MetricInputs
from graceful.plugins import FAULTS, described
from graceful.report import Measurement


def measure(about: About, inputs: MetricInputs) -> dict[str, Measurement]:
    """Return what all metrics of other packages measure on the version, its chain, or one ancestor."""
    with_retrieval = inputs.new.queries is not None
    return {
        name: value_of(metric, inputs)
        for name, metric in chosen(about).items()
        if with_retrieval or not metric.retrieval
    }


def chosen(about: About) -> Mapping[str, Metric]:
    """Return the metrics of other packages that are about the version, its chain, or one ancestor."""
    return {name: metric for name, metric in catalogue.others().items() if metric.about is about}


def value_of(metric: Metric, inputs: MetricInputs) -> Measurement:
    """Return what one metric measures, checked; undefined with the reason where its function fails."""
    assert metric.measure is not None, "checked when it was registered"
    try:
        measurement = metric.measure(inputs)
    except (*FAULTS, GracefulError) as error:
        return Measurement(value=None, reason=f"{_source(metric)} fails: {described(error)}")
    reason = fault(metric, measurement)
    if reason is not None:
        return Measurement(value=None, reason=f"{_source(metric)} returns {reason}")
    return plain(measurement)


def plain(measurement: Measurement) -> Measurement:
    """Return the measurement with Python's numbers in place of NumPy's, which JSON does not know."""
    value, lower, upper = (
        None if number is None else float(number)
        for number in (measurement.value, measurement.lower, measurement.upper)
    )
    count = None if measurement.count is None else int(measurement.count)
    return replace(measurement, value=value, lower=lower, upper=upper, count=count, n=int(measurement.n))


def fault(metric: Metric, measurement: object) -> str | None:
    """Return what is wrong with a measurement of a metric; None: nothing."""
    if not isinstance(measurement, Measurement):
        return f"{type(measurement).__name__}, not a graceful.report.Measurement"
    if measurement.value is None:
        return None if measurement.reason else "no value and no reason"
    ends = {"value": measurement.value, "lower": measurement.lower, "upper": measurement.upper}
    for key, number in ends.items():
        if number is not None and not (math.isfinite(number) and metric.lowest <= number <= metric.highest):
            return f"{number!r} as {key}, which must lie in [{metric.lowest:g}, {metric.highest:g}]"
    if (measurement.lower is None) != (measurement.upper is None):
        return "an interval with one end"
    if measurement.lower is not None and not measurement.lower <= measurement.value <= (measurement.upper or 0.0):
        return f"the value {measurement.value:g} outside its interval"
    return None


def _source(metric: Metric) -> str:
    module = getattr(metric.measure, "__module__", None) or "another package"
    return f"{metric.name} of {module}"
