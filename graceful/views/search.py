"""A search as pictures: compromises, what mattered, how fast it got there. SVG. Runs in the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graceful.views.rendering import render

if TYPE_CHECKING:
    from graceful.programs.tuning.study import Tried

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 400, 64, 48, 34, 20
INK = "#333333"
FRAME = {
    "width": WIDTH,
    "height": HEIGHT,
    "left": LEFT,
    "right": WIDTH - RIGHT,
    "top": TOP,
    "bottom": HEIGHT - BOTTOM,
    "ink": INK,
}


@dataclass(frozen=True, kw_only=True)
class Axes:
    """A plot's range in data, and where that lies on the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of a value on the picture; what lies outside the range is drawn at its edge."""
        across = (min(max(x, self.x[0]), self.x[1]) - self.x[0]) / ((self.x[1] - self.x[0]) or 1.0)
        up = (min(max(y, self.y[0]), self.y[1]) - self.y[0]) / ((self.y[1] - self.y[0]) or 1.0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP)

    def ticks(self) -> list[dict[str, Any]]:
        """Return six values of either axis with their places."""
        ticks = []
        for step in range(6):
            x, y = (low + (high - low) * step / 5 for low, high in (self.x, self.y))
            across, up = self.at(x, y)
            ticks.append({"x": across, "y": up, "across": f"{x:.3g}", "up": f"{y:.3g}"})
        return ticks


def pareto(document: Mapping[str, Any], trials: Sequence[Tried]) -> str:
    """Return the worst negative flip rate against the error, in percent; empty: no trial is complete.

    Where the error rate is kept is shaded.
    """
    complete = [trial for trial in trials if trial.state == "complete"]
    if not complete:
        return ""
    first = complete[0].record
    limit, reference_rate = 100 * first["limit"], 100 * first["reference_nfr"]
    bound = limit * (1.0 + float(document["asked"]["tolerance"]))
    errors = [100 * trial.record["error"] for trial in complete]
    rates = [100 * trial.record["nfr"] for trial in complete]
    axes = Axes(x=_room([*errors, bound]), y=(0.0, 1.08 * max([*rates, reference_rate]) or 1.0))
    (left, bottom), (right, top) = axes.at(axes.x[0], 0.0), axes.at(bound, axes.y[1])
    chosen = (document["best"] or {}).get("trial")
    points = []
    for trial, error, rate in zip(complete, errors, rates, strict=True):
        x, y = axes.at(error, rate)
        text = f"trial {trial.number}: error {error:.2f}, NFR {rate:.2f}"
        points.append({"x": x, "y": y, "feasible": trial.feasible, "chosen": trial.number == chosen, "text": text})
    return render(
        "plot.svg.j2",
        **FRAME,
        axes=axes,
        title="Trials",
        across="error rate, percent",
        up="worst negative flip rate, percent",
        shade={"left": left, "top": top, "width": right - left, "height": bottom - top},
        line=[axes.at(100 * x, 100 * y) for x, y in sorted((row["error"], row["nfr"]) for row in document["front"])],
        trials=points,
        reference=axes.at(limit, reference_rate),
    )


def growth(shares: Sequence[float]) -> str:
    """Return the hyper-volume over trials, in percent; empty with fewer than two."""
    if len(shares) < 2:
        return ""
    axes = Axes(x=(1.0, float(len(shares))), y=(0.0, 100 * 1.08 * max(shares) or 1.0))
    return render(
        "plot.svg.j2",
        **FRAME,
        axes=axes,
        title="What the trials have won",
        across="complete trials",
        up="hyper-volume, percent",
        shade=None,
        line=[axes.at(index + 1, 100 * share) for index, share in enumerate(shares)],
        trials=[],
        reference=None,
    )


def bars(shares: Mapping[str, float], *, title: str) -> str:
    """Return horizontal bars, largest first; empty without shares."""
    if not shares:
        return ""
    highest = max(shares.values()) or 1.0
    step = (HEIGHT - TOP - 16) / max(len(shares), 4)
    rows = [
        {"name": name, "share": share, "top": TOP + row * step + 6, "width": share / highest * (WIDTH - 240)}
        for row, (name, share) in enumerate(sorted(shares.items(), key=lambda item: -item[1]))
    ]
    return render("bars.svg.j2", width=WIDTH, height=HEIGHT, ink=INK, title=title, bars=rows, step=step)


def _room(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.5
    return max(0.0, low - margin), high + margin
