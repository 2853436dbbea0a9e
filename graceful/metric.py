"""What graceful knows of a metric: its name, what it is about, which values are good, unit and range. Every process."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from graceful.metrics.inputs import MetricInputs
    from graceful.report import Measurement

NAME = r"[a-z][a-z0-9_]{0,99}"


class Better(StrEnum):
    """Which values of a metric are good."""

    LOWER = "lower"
    HIGHER = "higher"
    EITHER = "either"
    """The metric describes the data or an old version; what is good about it depends on who asks."""


class About(StrEnum):
    """What a metric is measured on."""

    VERSION = "version"
    CHAIN = "chain"
    """All ancestors of a version together."""
    ANCESTOR = "ancestor"
    """A version against each of its ancestors."""
    PAIR = "pair"
    """A query model on the index of a gallery model, whichever of the two is the new version."""
    ADAPTER = "adapter"
    """An adapter between two versions, against searches without it; only `graceful adapt` measures it."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One entry of the catalogue.

    Attributes:
        name: As reports and specs write it.
        about: What it is measured on.
        better: Which values are good.
        lowest: Smallest value that it, and a bound on it, may have.
        highest: Largest value that it, and a bound on it, may have; infinite where there is none.
        unit: `fraction`: 0.02 is two percent; `points`: a difference of two fractions; any other word, such as `flips`
            or `nats`, is written behind the number.
        retrieval: Whether only an evaluation with retrieval measures it.
        measured: False: reported as undefined until shares of usage are recorded, so that no bound could be met.
        measure: Measures it, for metrics of other packages; None: graceful does.
        meaning: What it measures, in one sentence for people.
    """

    name: str
    about: About
    better: Better
    lowest: float = 0.0
    highest: float = 1.0
    unit: str = "fraction"
    retrieval: bool = False
    measured: bool = True
    measure: Callable[[MetricInputs], Measurement] | None = field(default=None, compare=False, repr=False)
    meaning: str = field(default="", compare=False, repr=False)

    def row(self) -> dict[str, Any]:
        """Return everything but the function, as JSON values; no upper end of the range is None."""
        return {
            "name": self.name,
            "about": self.about.value,
            "better": self.better.value,
            "lowest": self.lowest if isfinite(self.lowest) else None,
            "highest": self.highest if isfinite(self.highest) else None,
            "unit": self.unit,
            "retrieval": self.retrieval,
        }

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """Read what `row` wrote.

        Raises:
            ValueError: A key is missing, unknown, or has another value than a metric may have.
        """
        try:
            ends = {
                "lowest": -inf if row["lowest"] is None else row["lowest"],
                "highest": inf if row["highest"] is None else row["highest"],
            }
            words = {"about": About(row["about"]), "better": Better(row["better"])}
            metric = cls(**{**row, **ends, **words})
        except (KeyError, TypeError) as e:
            raise ValueError(f"not a metric: {e}") from e
        if (reason := fault(metric, metric.name)) is not None:
            raise ValueError(f"not a metric: {reason}")
        return metric


def shown(value: float, unit: str, digits: int = 2) -> str:
    """Return a value with its unit: percent for fractions, points for differences of them.

    Args:
        value: As measured.
        unit: As of `Metric`; empty: none.
        digits: Behind the point of percent and points; other numbers have two significant ones more.
    """
    match unit:
        case "fraction":
            return f"{100 * value:.{digits}f} %"
        case "points":
            return f"{100 * value:.{digits}f} points"
    return f"{value:.{digits + 2}g} {unit}".rstrip()


def fault(metric: object, name: str) -> str | None:
    """Return what is wrong with what another package offers as a metric of a name; None: nothing."""
    if not isinstance(metric, Metric):
        return "which is not a graceful.catalogue.Metric"
    if metric.name != name or not re.fullmatch(NAME, name):
        return f"whose name is {metric.name!r}; both must be the same: lower case letters, digits and _, at most 100"
    words: dict[type, object] = {About: metric.about, Better: metric.better}
    if not all(isinstance(word, kind) for kind, word in words.items()):
        return "whose about and better must be members of About and Better"
    ends = (metric.lowest, metric.highest)
    if not all(type(end) in (int, float) for end in ends) or not metric.lowest < metric.highest:
        return f"whose range must be two numbers, the lower first, got {ends}"
    if not isinstance(metric.unit, str) or not metric.unit.isprintable():
        return f"whose unit must be a word, got {metric.unit!r}"
    return None
