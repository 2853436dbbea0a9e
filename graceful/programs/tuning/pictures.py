"""A finished search as pictures: compromises, what mattered, how fast it got there. SVG files, a page. Driver."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graceful.programs.tuning.study import Tried
from graceful.storage import write_text

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 400, 64, 48, 34, 20
INK, GOOD, BAD, LINE, SHADE = "#333333", "#1a7f5a", "#b0b0b0", "#2f6fb0", "#e4f3ea"


def write_pictures(folder: Path, document: Mapping[str, Any], trials: Sequence[Tried]) -> list[Path]:
    """Write pareto.svg, importance.svg, hypervolume.svg and tune.html, which holds them; returns the files.

    A picture that has nothing to show yet (no complete trial, importances of one) is left out.
    """
    pictures = {
        "pareto": pareto(document, trials),
        "importance": bars(document["importances"], title="Share in what changes the negative flip rate"),
        "hypervolume": growth(document["hypervolume"]),
    }
    shown = {name: svg for name, svg in pictures.items() if svg}
    files = [write_text(folder / f"{name}.svg", svg) for name, svg in shown.items()]
    return [*files, write_text(folder / "tune.html", page(document, list(shown.values())))]


@dataclass(frozen=True, kw_only=True)
class Axes:
    """A plot's range in data, and where that lies on the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Data -> picture; what lies outside the range is drawn at its edge."""
        across = (min(max(x, self.x[0]), self.x[1]) - self.x[0]) / ((self.x[1] - self.x[0]) or 1.0)
        up = (min(max(y, self.y[0]), self.y[1]) - self.y[0]) / ((self.y[1] - self.y[0]) or 1.0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP)

    def drawn(self, *, title: str, across: str, up: str) -> str:
        """Frame, ticks and labels."""
        parts = [_text(WIDTH / 2, 20, title, size=14)]
        for step in range(6):
            x, y = (low + (high - low) * step / 5 for low, high in (self.x, self.y))
            (px, _), (_, py) = self.at(x, self.y[0]), self.at(self.x[0], y)
            parts.append(_text(px, HEIGHT - BOTTOM + 16, f"{x:.3g}"))
            parts.append(_text(LEFT - 6, py + 4, f"{y:.3g}", anchor="end"))
            parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}" stroke="#eeeeee"/>')
        middle = (HEIGHT - BOTTOM + TOP) / 2
        parts.append(_text(WIDTH / 2, HEIGHT - 10, across))
        parts.append(f'<g transform="rotate(-90 16 {middle})">{_text(16, middle, up)}</g>')
        return "".join(parts)


def pareto(document: Mapping[str, Any], trials: Sequence[Tried]) -> str:
    """Worst negative flip rate against error, in percent; where the error rate is kept is shaded; empty: no trial."""
    done = [one for one in trials if one.state == "complete"]
    if not done:
        return ""
    points = [(100 * one.record["error"], 100 * one.record["nfr"], one.feasible, one.number) for one in done]
    first = done[0].record
    untreated = (100 * first["limit"], 100 * first["reference_nfr"])
    bound = untreated[0] * (1.0 + float(document["asked"]["tolerance"]))
    xs, ys = [p[0] for p in points] + [bound], [p[1] for p in points] + [untreated[1]]
    axes = Axes(x=_room(xs), y=(0.0, 1.08 * max(ys) or 1.0))
    (left, bottom), (right, top) = axes.at(axes.x[0], 0.0), axes.at(bound, axes.y[1])
    size = f'width="{right - left:.1f}" height="{bottom - top:.1f}"'
    parts = [f'<rect x="{left:.1f}" y="{top:.1f}" {size} fill="{SHADE}"/>']
    parts.append(axes.drawn(title="Trials", across="error rate, percent", up="worst negative flip rate, percent"))
    best = sorted((row["error"], row["nfr"]) for row in document["front"])
    path = " ".join("{:.1f},{:.1f}".format(*axes.at(100 * x, 100 * y)) for x, y in best)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-dasharray="4 3"/>')
    chosen = (document["best"] or {}).get("trial")
    for x, y, feasible, number in points:
        px, py = axes.at(x, y)
        ring = f' stroke="{INK}" stroke-width="2"' if number == chosen else ""
        told = f"<title>trial {number}: error {x:.2f}, NFR {y:.2f}</title>"
        parts.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="5" fill="{GOOD if feasible else BAD}"{ring}>{told}</circle>'
        )
    px, py = axes.at(*untreated)
    parts.append(f'<path d="M{px - 6:.1f} {py:.1f}h12m-6 -6v12" stroke="{INK}" stroke-width="2"/>')
    parts.append(_text(px, py - 10, "untreated"))
    parts.append(_text(WIDTH - RIGHT, TOP + 12, "green: the upper bound of the error keeps the rate", anchor="end"))
    return _svg(parts)


def growth(shares: Sequence[float]) -> str:
    """Hyper-volume over trials, percent; empty with fewer than two."""
    if len(shares) < 2:
        return ""
    axes = Axes(x=(1.0, float(len(shares))), y=(0.0, 100 * 1.08 * max(shares) or 1.0))
    path = " ".join("{:.1f},{:.1f}".format(*axes.at(index + 1, 100 * share)) for index, share in enumerate(shares))
    drawn = axes.drawn(title="What the trials have won", across="complete trials", up="hyper-volume, percent")
    return _svg([drawn, f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-width="2"/>'])


def bars(shares: Mapping[str, float], *, title: str) -> str:
    """Horizontal bars, largest first; empty without shares."""
    if not shares:
        return ""
    parts, most = [_text(WIDTH / 2, 20, title, size=14)], max(shares.values()) or 1.0
    step = (HEIGHT - TOP - 16) / max(len(shares), 4)
    for row, (name, share) in enumerate(sorted(shares.items(), key=lambda item: -item[1])):
        y, width = TOP + row * step + 6, share / most * (WIDTH - 240)
        parts.append(_text(132, y + step / 2, name, anchor="end"))
        parts.append(f'<rect x="140" y="{y:.1f}" width="{width:.1f}" height="{step * 0.7:.1f}" fill="{LINE}"/>')
        parts.append(_text(146 + width, y + step / 2, f"{100 * share:.0f} %", anchor="start"))
    return _svg(parts)


def page(document: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """One HTML file that holds the pictures and the result."""
    from graceful.programs.tuning.words import conclusion

    said = "".join(f"<p>{html.escape(line)}</p>" for line in conclusion(document))
    rows = "".join(f"<figure>{picture}</figure>" for picture in pictures)
    name = html.escape(str(document["run_id"]))
    style = "body{font:15px sans-serif;max-width:42em;margin:2em auto;color:#333}figure{margin:1em 0}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}: search</title>'
        f"<style>{style}</style></head><body><h1>{name}: search</h1>{said}{rows}</body></html>\n"
    )


def _room(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.5
    return max(0.0, low - margin), high + margin


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "middle") -> str:
    at = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
    return f'<text {at} fill="{INK}">{html.escape(text)}</text>'


def _svg(parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        f' font-family="sans-serif"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )
