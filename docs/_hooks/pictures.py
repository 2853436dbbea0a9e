"""Pictures of the concepts, drawn as SVG: `python docs/_hooks/pictures.py` writes them into docs/pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "pictures"
INK, GREY, PALE = "#1c2430", "#57606a", "#eaeef2"
GREEN, RED, BLUE, ORANGE = "#1a7f37", "#b42318", "#0550ae", "#9a5b00"
WIDTH = 700


def text(
    x: float, y: float, words: str, *, fill: str = INK, size: int = 13, bold: bool = False, at: str = "start"
) -> str:
    """Return a line of text whose `at` (start, middle or end) is at (x, y)."""
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="{at}"{weight}>{words}</text>'


def box(x: float, y: float, width: float, height: float, *lines: str, colour: str = INK, fill: str = "#ffffff") -> str:
    """Return a box with centred lines of text, the first of them bold."""
    frame = (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill}" stroke="{colour}" '
        'stroke-width="1.5"/>'
    )
    top = y + height / 2 - (len(lines) - 1) * 8.5 + 4.5
    rows = (
        text(
            x + width / 2,
            top + 17 * row,
            words,
            fill=GREY if row else colour,
            size=12 if row else 13,
            bold=not row,
            at="middle",
        )
        for row, words in enumerate(lines)
    )
    return frame + "".join(rows)


def arrow(x1: float, y1: float, x2: float, y2: float, *, colour: str = GREY, dashed: bool = False) -> str:
    """Return a straight arrow from (x1, y1) to (x2, y2)."""
    angle = math.atan2(y2 - y1, x2 - x1)
    wings = [(x2 - 9 * math.cos(angle + turn), y2 - 9 * math.sin(angle + turn)) for turn in (-0.4, 0.4)]
    head = " ".join(f"{x:.1f},{y:.1f}" for x, y in [(x2, y2), *wings])
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    end = (x2 - 6 * math.cos(angle), y2 - 6 * math.sin(angle))
    return (
        f'<path d="M{x1:g} {y1:g}L{end[0]:.1f} {end[1]:.1f}" stroke="{colour}" stroke-width="1.5" fill="none"{dashes}/>'
        f'<polygon points="{head}" fill="{colour}"/>'
    )


def line(
    x1: float, y1: float, x2: float, y2: float, *, colour: str = GREY, width: float = 1.5, dashed: bool = False
) -> str:
    """Return a straight line."""
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="{colour}" stroke-width="{width:g}" fill="none"{dashes}/>'


def dot(x: float, y: float, colour: str, *, radius: float = 7, hollow: bool = False) -> str:
    """Return a filled or hollow circle."""
    fill = "#ffffff" if hollow else colour
    return f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{fill}" stroke="{colour}" stroke-width="2"/>'


def square(x: float, y: float, colour: str, *, side: float = 11) -> str:
    """Return a filled square with its centre at (x, y)."""
    return f'<rect x="{x - side / 2:g}" y="{y - side / 2:g}" width="{side:g}" height="{side:g}" fill="{colour}"/>'


def curve(points: Iterable[tuple[float, float]], colour: str) -> str:
    """Return a line through the points."""
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M{path}" stroke="{colour}" stroke-width="2" fill="none"/>'


def picture(title: str, height: int, *parts: str) -> str:
    """Return a whole SVG document on white ground, so that it reads on dark pages as well."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="system-ui, sans-serif">\n<title>{title}</title>\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def flips() -> str:
    """Return twenty samples, right or wrong in the old and in the new version."""
    old, new = {15, 16, 17, 18, 19}, {3, 9, 18}
    parts = [text(16, 78, "old version", bold=True), text(16, 118, "new version", bold=True)]
    for sample in range(20):
        x = 122 + 28 * sample
        if (sample in old) != (sample in new):
            parts.append(
                f'<rect x="{x - 12}" y="56" width="24" height="80" rx="6" '
                f'fill="{"#fde8e7" if sample in new else "#e3f3e7"}"/>'
            )
        for y, wrong in ((74, old), (114, new)):
            parts.append(dot(x, y, RED if sample in wrong else GREEN, hollow=sample in wrong))
    parts += [
        dot(23, 24, GREEN, radius=6), text(36, 28, "right"),
        dot(93, 24, RED, radius=6, hollow=True), text(106, 28, "wrong"),
        text(190, 28, "each column is one of 20 samples", fill=GREY),
        text(122 + 28 * 6, 158, "2 negative flips: NFR = 2/20 = 10 %", fill=RED, at="middle", bold=True),
        text(122 + 28 * 16, 158, "4 positive flips: PFR = 20 %", fill=GREEN, at="middle", bold=True),
        text(388, 182, "error: from 5/20 = 25 % to 3/20 = 15 %, which is NFR - PFR", fill=GREY, at="middle"),
    ]  # fmt: skip
    return picture("Negative and positive flips of twenty samples", 200, *parts)


def _space(left: float, turn: float, centres: dict[str, tuple[float, float]]) -> list[str]:
    """Return a panel with the old gallery (squares) and new queries (circles), which are turned by `turn` radians."""
    parts = [
        f'<rect x="{left}" y="56" width="320" height="200" rx="6" fill="#ffffff" stroke="{PALE}" stroke-width="2"/>'
    ]
    queries = []
    for colour, (x, y) in centres.items():
        for step in range(4):
            angle = 1.7 * step + x
            parts.append(square(left + 160 + x + 19 * math.cos(angle), 156 + y + 19 * math.sin(angle), colour))
        shrink = 0.8 if turn else 1.0
        across = shrink * (x * math.cos(turn) - y * math.sin(turn))
        down = shrink * (x * math.sin(turn) + y * math.cos(turn))
        queries.append(dot(left + 160 + across, 156 + down, colour, radius=8, hollow=True))
    return [*parts, *queries]


def bct() -> str:
    """Return two embedding spaces: new queries beside the old gallery, and within it."""
    centres = {BLUE: (-90.0, -45.0), ORANGE: (85.0, -50.0), GREEN: (5.0, 62.0)}
    parts = [
        text(176, 46, "new version trained alone", bold=True, at="middle"),
        text(524, 46, "new version trained compatibly", bold=True, at="middle"),
        *_space(16, 2.1, centres), *_space(364, 0.0, centres),
        text(176, 276, "a query finds the wrong class in the old gallery", fill=RED, at="middle"),
        text(524, 276, "a query finds its class in the old gallery", fill=GREEN, at="middle"),
        square(120, 16, GREY), text(132, 20, "gallery, embedded by the old version", fill=GREY, size=12),
        dot(392, 16, GREY, radius=6, hollow=True),
        text(404, 20, "query, embedded by the new version", fill=GREY, size=12),
    ]  # fmt: skip
    return picture("Old gallery and new queries, without and with backward-compatible training", 290, *parts)


def chain() -> str:
    """Return three predecessors whose outputs merge into one target, and the evaluation against each."""
    parts = []
    for place, name in enumerate(("v1", "v2", "v3")):
        y = 24 + 66 * place
        parts += [box(16, y, 96, 46, name, "predecessor"), box(172, y, 130, 46, "outputs, cached", "computed once")]
        parts += [arrow(112, y + 23, 170, y + 23), arrow(302, y + 23, 352, 113 + 6 * (place - 1))]
    parts += [
        box(354, 84, 120, 58, "one target", "weighted mean"),
        arrow(474, 113, 530, 113),
        box(532, 84, 152, 58, "v4 in training", "task loss + losses", colour=BLUE),
        arrow(608, 144, 608, 212, colour=BLUE), text(616, 184, "then", fill=GREY, size=12),
        box(532, 214, 152, 46, "evaluation of v4", colour=BLUE),
    ]  # fmt: skip
    for place in range(3):
        parts.append(
            line(64, 24 + 66 * place + 46, 64, 24 + 66 * place + 66, colour=PALE, width=4) if place < 2 else ""
        )
    parts += [
        line(530, 237, 64, 237, colour=BLUE, dashed=True), arrow(64, 237, 64, 204, colour=BLUE, dashed=True),
        text(298, 256, "against v1, v2 and v3, each on its own: flips, retrieval", fill=BLUE, size=12, at="middle"),
    ]  # fmt: skip
    return picture("A chain of three predecessors: one merged target, three comparisons", 274, *parts)


def gate() -> str:
    """Return three intervals of a negative flip rate beside a bound of 3 %."""
    left, scale = 90, 72
    parts = [
        text(16, 28, "negative_flip_rate at most 3 %", bold=True),
        line(left, 184, left + 5.4 * scale, 184, colour=INK),
        line(left + 3 * scale, 40, left + 3 * scale, 184, colour=RED, dashed=True),
        text(left + 3 * scale + 6, 40, "bound", fill=RED, size=12),
    ]
    for percent in range(6):
        x = left + percent * scale
        parts += [line(x, 184, x, 190, colour=INK), text(x, 206, f"{percent} %", fill=GREY, size=12, at="middle")]
    rows = (
        ("passed", 1.2, 1.8, 2.5, GREEN, "the whole interval is within the bound"),
        ("held", 1.6, 2.4, 3.4, RED, "the value is within, the worse end is not"),
        ("held", 3.3, 3.7, 4.1, RED, "the value is outside"),
    )
    for place, (verdict, low, value, high, colour, why) in enumerate(rows):
        y = 68 + 42 * place
        parts += [
            text(16, y + 4, verdict, fill=colour, bold=True),
            line(left + low * scale, y, left + high * scale, y, colour=colour, width=3),
            *(
                line(left + end * scale, y - 6, left + end * scale, y + 6, colour=colour, width=3)
                for end in (low, high)
            ),
            dot(left + value * scale, y, colour, radius=5),
            text(left + max(high, 3) * scale + 12, y + 4, why, fill=GREY, size=12),
        ]
    return picture("Three 95 % intervals beside a bound, and what the gate says", 216, *parts)


def index() -> str:
    """Return a gallery before, in the middle of and after a backfill."""
    parts = [
        square(176, 18, GREY), text(188, 22, "vectors of v1", fill=GREY, size=12),
        square(296, 18, BLUE), text(308, 22, "vectors of v2", fill=GREY, size=12),
    ]  # fmt: skip
    rows = (
        ("before", 0, "v1", "queries by v1, or by a compatible v2"),
        ("in the middle", 10, "v1", "queries by both; calibrated scores make one list"),
        ("after", 20, "v2", "queries by v2; checked, then the alias moves"),
    )
    for place, (name, moved, alias, queries) in enumerate(rows):
        y = 56 + 58 * place
        parts.append(text(16, y + 4, name, bold=True))
        parts += [square(132 + 20 * item, y, BLUE if item < moved else GREY, side=15) for item in range(20)]
        parts += [text(540, y + 4, f"alias: {alias}", fill=BLUE if alias == "v2" else INK, bold=True)]
        parts += [text(124, y + 27, queries, fill=GREY, size=12)]
    return picture("An index before, in the middle of and after a backfill", 206, *parts)


def lqf() -> str:
    """Return a loss with several minima and a quadratic one."""
    bumpy = [(20 + 3 * k, 150 + 34 * math.sin(k / 11) - 0.012 * (k - 50) ** 2 * 1.9) for k in range(101)]
    bowl = [(384 + 3 * k, 190 - 0.046 * (k - 50) ** 2) for k in range(101)]
    low, other = max(bumpy[:40], key=lambda at: at[1]), max(bumpy[60:], key=lambda at: at[1])
    parts = [
        text(170, 28, "fine-tuning", bold=True, at="middle"),
        text(534, 28, "the linearised network", bold=True, at="middle"),
        text(16, 56, "loss", fill=GREY, size=12), text(380, 56, "loss", fill=GREY, size=12),
        curve(bumpy, INK), curve(bowl, INK), dot(*low, RED, radius=6), dot(*other, BLUE, radius=6),
        text(low[0], low[1] + 24, "order A of the data", fill=RED, size=12, at="middle"),
        text(other[0], other[1] + 24, "order B", fill=BLUE, size=12, at="middle"),
        dot(534, 190, GREEN, radius=6), text(534, 214, "one minimum, from any order", fill=GREEN, size=12, at="middle"),
        text(170, 244, "another order may end elsewhere", fill=GREY, at="middle"),
        text(534, 244, "predecessors only move the minimum", fill=GREY, at="middle"),
    ]  # fmt: skip
    return picture("Fine-tuning has several minima, linear-quadratic fine-tuning has one", 258, *parts)


def hvs() -> str:
    """Return a large gallery model that embeds an index once, and a small query model that searches it."""
    parts = [
        text(16, 28, "once, in a data centre", fill=GREY, size=12),
        text(16, 152, "for each query, on a device", fill=GREY, size=12),
        box(16, 42, 130, 58, "gallery", "millions of items"), arrow(146, 71, 196, 71),
        box(198, 32, 170, 78, "gallery model", "large, frozen"), arrow(368, 71, 438, 71),
        box(440, 42, 120, 58, "index", "one space", colour=BLUE),
        box(16, 166, 130, 58, "query", "a photo"), arrow(146, 195, 216, 195),
        box(218, 172, 130, 46, "query model", "small", colour=GREEN),
        arrow(348, 195, 470, 102, colour=GREEN), text(424, 172, "searches it", fill=GREEN, size=12),
        arrow(283, 112, 283, 170, dashed=True), text(292, 140, "trained against", fill=GREY, size=12),
        box(566, 166, 118, 58, "result", "nearest items"), arrow(528, 102, 598, 164, colour=BLUE),
    ]  # fmt: skip
    return picture("A small query model searches the index of a large gallery model", 240, *parts)


def pictures() -> dict[str, str]:
    """Return every picture by the name of its file."""
    return {f"{draw.__name__}.svg": draw() for draw in (flips, bct, chain, gate, index, lqf, hvs)}


if __name__ == "__main__":
    for name, content in pictures().items():
        (FOLDER / name).write_text(content, encoding="utf-8")
