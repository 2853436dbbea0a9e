"""Fill templates with values: everything is escaped, a missing value is an error. Runs in the driver."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from graceful.report import Measurement

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """Return a template of `graceful/views/templates` filled with values.

    Args:
        template: Name of the file.
        values: What its variables stand for; texts are escaped.
    """
    return _environment().get_template(template).render(values)


def percent(measurement: Measurement | None, *, interval: bool = True) -> str:
    """Return a rate as percent, with its interval where it has one; a dash where it was not measured."""
    if measurement is None or measurement.value is None:
        return "-"
    text = f"{100 * measurement.value:.2f}"
    if interval and measurement.lower is not None and measurement.upper is not None:
        text += f" [{100 * measurement.lower:.2f}, {100 * measurement.upper:.2f}]"
    return text


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("graceful.views"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = percent
    environment.filters["fixed"] = lambda number, digits=1: f"{number:.{digits}f}"
    environment.filters["path"] = lambda points: " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return environment
