"""How negative flips and multipliers moved while a version trained, as small pictures: SVG. Runs in the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 215, 110, 42, 14, 18
"""Of one panel, in pixels; `LEFT` for the numbers, `BOTTOM` for the epochs."""
INK, LINE, BOUND = "#1c2430", "#2171b5", "#b35c00"


def curves(document: Mapping[str, Any]) -> str:
    """A figure for each predecessor whose budget is active: its NFR with the budget, and its multiplier."""
    figures = [_figure(one, document.get("chosen_epoch")) for one in document["predecessors"] if _drawn(one)]
    return f"<div class='curves'>{''.join(figures)}</div>" if figures else ""


def _drawn(one: Mapping[str, Any]) -> bool:
    return one["status"] == "active" and any(rate is not None for rate in one["constraint_nfrs"])


def _figure(one: Mapping[str, Any], chosen: int | None) -> str:
    rates = [None if rate is None else 100 * rate for rate in one["constraint_nfrs"]]
    first, last = (f"{rate:.2f}" if rate is not None else "-" for rate in (rates[0], rates[-1]))
    multipliers = one["multipliers"]
    said = (
        f"{one['name']}: NFR on the constraint split {first} to {last} %, budget {100 * one['budget']:.2f} %"
        f" ({one['status']}); multiplier {_short(multipliers[0])} to {_short(multipliers[-1])}"
    )
    left = _panel(rates, title="NFR, %", bound=100 * one["budget"], chosen=chosen, x=0)
    right = _panel(multipliers, title="multiplier", bound=None, chosen=chosen, x=WIDTH + 20)
    size = f"viewBox='0 0 {2 * WIDTH + 20} {HEIGHT}'"
    return (
        f"<figure class='curve'><svg {size} role='img' aria-label='{escape(said, quote=True)}'>{left}{right}</svg>"
        f"<figcaption>{escape(said)}</figcaption></figure>"
    )


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _panel(values: Sequence[float | None], *, title: str, bound: float | None, chosen: int | None, x: int) -> str:
    """One line over epochs, from zero; the bound dashed and named, the chosen epoch a circle."""
    top = max([value for value in values if value is not None] + [bound or 0.1]) * 1.1
    wide, high = WIDTH - LEFT - 8, HEIGHT - TOP - BOTTOM

    def at(index: int, value: float) -> tuple[float, float]:
        return x + LEFT + wide * index / max(len(values) - 1, 1), TOP + high * (1 - value / top)

    points = [at(index, value) for index, value in enumerate(values) if value is not None]
    floor, end = TOP + high, x + LEFT + wide
    marks = [
        f"<line x1='{x + LEFT}' x2='{end}' y1='{floor}' y2='{floor}' stroke='{INK}' stroke-width='.5'/>",
        f"<polyline points='{' '.join(f'{a:.1f},{b:.1f}' for a, b in points)}' fill='none' stroke='{LINE}'"
        " stroke-width='2'/>",
        _text(x + LEFT - 6, floor + 4, "0", anchor="end"),
        _text(x + LEFT - 6, TOP + 8, f"{top / 1.1:.2g}", anchor="end"),
        _text(x + LEFT, HEIGHT - 5, "epoch 1"),
        _text(end, HEIGHT - 5, str(len(values)), anchor="end"),
        _text(x + LEFT + 4, TOP - 2, title),
    ]
    if bound is not None:
        height = at(0, bound)[1]
        marks.append(
            f"<line x1='{x + LEFT}' x2='{end}' y1='{height:.1f}' y2='{height:.1f}' stroke='{BOUND}'"
            " stroke-dasharray='5 3'/>"
        )
        marks.append(_text(end, height - 3, f"budget {bound:.2f}", anchor="end", fill=BOUND))
    value = values[chosen - 1] if chosen and chosen <= len(values) else None
    if chosen and value is not None:
        across, down = at(chosen - 1, value)
        marks.append(
            f"<circle cx='{across:.1f}' cy='{down:.1f}' r='4' fill='#fff' stroke='{LINE}' stroke-width='2'>"
            f"<title>epoch {chosen} was chosen</title></circle>"
        )
    return "".join(marks)


def _text(x: float, y: float, words: str, *, anchor: str = "start", fill: str = INK) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' font-size='10' fill='{fill}'>{escape(words)}</text>"
