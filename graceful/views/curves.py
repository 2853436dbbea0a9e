"""How negative flips and multipliers moved while a version trained, as small pictures. Runs in the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 215, 110, 42, 14, 18, 20
"""Sizes of one panel, in pixels: `LEFT` is for the numbers, `BOTTOM` for the epochs; `GAP` between two."""
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One line over epochs, from zero; in pixels unless said otherwise.

    Attributes:
        title: What the line shows.
        left: Where the axes begin.
        right: Where they end.
        ceiling: Upper edge.
        floor: Where zero is.
        highest: Value at the upper edge, as it is written there.
        epochs: How many there are.
        points: The line.
        bound: A value to stay below; None: there is none.
        bound_height: Where it is.
        chosen_epoch: Which epoch was taken.
        chosen: Its point; None: it is not shown.
    """

    title: str
    left: int
    right: int
    ceiling: int
    floor: int
    highest: float
    epochs: int
    points: list[Point]
    bound: float | None
    bound_height: float
    chosen_epoch: int | None
    chosen: Point | None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Two panels side by side and a description in words."""

    caption: str
    panels: tuple[Panel, Panel]
    width: int = 2 * WIDTH + GAP
    height: int = HEIGHT


def curves(document: Mapping[str, Any]) -> list[Curve]:
    """Return a picture for each predecessor whose budget is active: its NFR with the budget, and its multiplier."""
    return [
        _curve(predecessor, document.get("chosen_epoch"))
        for predecessor in document["predecessors"]
        if predecessor["status"] == "active" and any(rate is not None for rate in predecessor["constraint_nfrs"])
    ]


def _curve(predecessor: Mapping[str, Any], chosen: int | None) -> Curve:
    rates = [None if rate is None else 100 * rate for rate in predecessor["constraint_nfrs"]]
    budget, multipliers = 100 * predecessor["budget"], predecessor["multipliers"]
    caption = (
        f"{predecessor['name']}: NFR on the constraint split {_short(rates[0])} to {_short(rates[-1])} %,"
        f" budget {budget:.2f} % ({predecessor['status']});"
        f" multiplier {_short(multipliers[0])} to {_short(multipliers[-1])}"
    )
    left = panel(rates, title="NFR, %", bound=budget, chosen=chosen, x=0)
    right = panel(multipliers, title="multiplier", bound=None, chosen=chosen, x=WIDTH + GAP)
    return Curve(caption=caption, panels=(left, right))


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def panel(values: Sequence[float | None], *, title: str, bound: float | None, chosen: int | None, x: int) -> Panel:
    """Return one line over epochs.

    Args:
        values: One for each epoch; None: not measured.
        title: What they are.
        bound: A value to stay below.
        chosen: Which epoch was taken, from 1.
        x: Left edge in pixels.
    """
    highest = max([value for value in values if value is not None] + [bound or 0.1]) * 1.1
    left, right, floor = x + LEFT, x + WIDTH - 8, HEIGHT - BOTTOM

    def point(index: int, value: float) -> Point:
        across = left + (right - left) * index / max(len(values) - 1, 1)
        return across, TOP + (floor - TOP) * (1 - value / highest)

    value = values[chosen - 1] if chosen and chosen <= len(values) else None
    return Panel(
        title=title,
        left=left,
        right=right,
        ceiling=TOP,
        floor=floor,
        highest=highest / 1.1,
        epochs=len(values),
        points=[point(index, value) for index, value in enumerate(values) if value is not None],
        bound=bound,
        bound_height=point(0, bound or 0.0)[1],
        chosen_epoch=chosen,
        chosen=point(chosen - 1, value) if chosen and value is not None else None,
    )
