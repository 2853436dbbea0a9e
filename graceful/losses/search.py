"""Ranges that a search draws from. Every process; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Value = float | int | str
Point = Mapping[str, Value]
"""Parameter name -> value; only the parameters that count at this point."""


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

    @classmethod
    def of(cls, written: tuple[float, float] | None, default: tuple[float, float], *, log: bool = True) -> Span:
        """Return the written range, or the default one; a range of one value has no scale."""
        low, high = written or default
        return cls(low=low, high=high, log=log and low < high)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of a few values."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


Domain = Span | Choice


@dataclass(frozen=True, kw_only=True)
class SearchKey:
    """A key of `tune.space`: the range that a user may write for one parameter of a search.

    Attributes:
        annotation: What may stand there; None is always allowed and means the default range.
        doc: A sentence for the schema, with the default range.
        largest: Largest value of a range [low, high]; None: the key is no such range.
        log: Whether the range has a log scale, so that its lower end must be above 0.
    """

    annotation: Any
    doc: str
    largest: float | None = None
    log: bool = False
