"""The family as a picture, SVG or PNG: a line for a version, newest on top, branches as lanes. Pure; any process.

The SVG has no scripts, no links, no fonts of its own; it is shown as an image, beside a table that carries the links.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, ClassVar

from graceful.lineage.family import Family, Key, Member, costs, lanes
from graceful.views.rendering import render

WIDTH = 700
"""Pixels: what MLflow's page leaves on a laptop's screen with its assistant open."""
COLOURS = {"passed": "#1a7f37", "waived": "#1a7f37", "held": "#b35900", "unjudged": "#57606a"}
GREY, BLACK, WHITE, BLUE = "#57606a", "#1c2430", "#ffffff", "#0550ae"
_ROW, _TOP, _LEFT, _LANE = 46, 64, 28, 22
_TEXT = 88
"""Characters that fit beside the lanes in small print."""
_SHARP = 2
"""Pixels of a PNG for one of the SVG."""
Point = tuple[float, float]


@dataclass(frozen=True)
class _Line:
    kind: ClassVar[str] = "line"
    points: tuple[Point, ...]
    colour: str
    dashed: bool


@dataclass(frozen=True)
class _Dot:
    kind: ClassVar[str] = "dot"
    at: Point
    radius: int
    fill: str | None
    colour: str


@dataclass(frozen=True)
class _Text:
    kind: ClassVar[str] = "text"
    at: Point
    size: int
    pieces: tuple[tuple[str, str, bool], ...]
    """Text, colour, whether bold."""


_Mark = _Line | _Dot | _Text


def family_svg(family: Family) -> str:
    """Return the family as SVG; the verdict of a version and of every edge in colour and in words."""
    marks, height = _marks(family)
    return render("family.svg.j2", title=_title(family), marks=marks, width=WIDTH, height=height, background=WHITE)


def family_png(family: Family) -> bytes:
    """Return the drawing as PNG, twice as many pixels wide and high."""
    from PIL import Image, ImageDraw

    marks, height = _marks(family)
    image = Image.new("RGB", (WIDTH * _SHARP, height * _SHARP), WHITE)
    canvas = ImageDraw.Draw(image)
    for mark in marks:
        _png(canvas, mark)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def cut(text: str, length: int) -> str:
    """Return a text shortened to at most `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


# --- what is drawn ----------------------------------------------------------------------------------------------------


def _title(family: Family) -> str:
    number = len(family.members)
    return f"{family.model}: {'newest ' if family.older else ''}{number} version{'' if number == 1 else 's'}"


def _marks(family: Family) -> tuple[list[_Mark], int]:
    rows = lanes(family)
    positions = {
        member.key: (_LEFT + row.lane * _LANE, _TOP + index * _ROW + _ROW // 2)
        for index, (member, row) in enumerate(zip(family.members, rows, strict=True))
    }
    bottom = _TOP + len(rows) * _ROW
    text = _LEFT + (max((lane for row in rows for lane in (*row.before, *row.after, row.lane)), default=0) + 1) * _LANE
    marks: list[_Mark] = [
        _Text((16, 28), 17, ((cut(_title(family), 60), BLACK, True),)),
        _Text((16, 48), 12, (("newest on top; NFR: right before, wrong now; of: the budget", GREY, False),)),
    ]
    for member in family.members:
        marks.extend(_edges(member, positions, bottom))
    for member in family.members:
        marks.extend(_version(family, member, positions[member.key], text))
    return marks, bottom + 16


def _edges(member: Member, positions: dict[Key, tuple[int, int]], bottom: int) -> list[_Mark]:
    x, y = positions[member.key]
    marks: list[_Mark] = []
    for parent, cost in member.parents.items():
        to_x, to_y = positions.get(parent, (x, bottom + 8))
        if to_x == x:
            points: tuple[Point, ...] = ((x, y), (to_x, to_y))
        elif to_x > x:  # into a lane of its own at once, then down
            points = (*_curve((x, y), (x, y + 24), (to_x, y + 8), (to_x, y + 36)), (to_x, to_y))
        else:
            turn = max(y, to_y - 36)
            points = ((x, y), *_curve((x, turn), (x, to_y - 8), (to_x, to_y - 24), (to_x, to_y)))
        marks.append(_Line(points, COLOURS.get(cost.verdict, GREY), parent not in positions))
    return marks


def _curve(start: Point, first: Point, second: Point, end: Point) -> tuple[Point, ...]:
    """Return points of a cubic Bezier curve, which the SVG and the PNG share."""
    points = []
    for step in range(17):
        t = step / 16
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
        knots = (start, first, second, end)
        x, y = (sum(weight * knot[axis] for weight, knot in zip(weights, knots, strict=True)) for axis in (0, 1))
        points.append((round(x, 1), round(y, 1)))
    return tuple(points)


def _version(family: Family, member: Member, position: tuple[int, int], text: int) -> list[_Mark]:
    x, y = position
    colour = COLOURS.get(member.verdict, GREY)
    accuracy = "" if member.accuracy is None else f", accuracy {member.accuracy:.3f}"
    worst = "held" if any(cost.verdict == "held" for cost in member.parents.values()) else member.verdict
    small = "; ".join(costs(family, member)) or ("first version" if member.first else "")
    marks: list[_Mark] = [
        _Dot((x, y), 7, WHITE if member.verdict == "held" else colour, colour),
        _Text(
            (text, y - 3),
            13,
            (
                (f"{cut(member.label(family.model), 32)}, version {member.key.version}", BLACK, True),
                (f"{member.verdict or 'unknown'}{accuracy}", colour, False),
                (" ".join(f"@{alias}" for alias in member.aliases), BLUE, True),
            ),
        ),
        _Text((text, y + 14), 12, ((cut(small, _TEXT), COLOURS.get(worst, GREY), False),)),
    ]
    return [*marks, _Dot((x, y), 11, None, colour)] if family.serves(member) else marks


# --- as PNG -----------------------------------------------------------------------------------------------------------


def _png(canvas: Any, mark: _Mark) -> None:
    from PIL import ImageFont

    if isinstance(mark, _Line):
        points = [(x * _SHARP, y * _SHARP) for x, y in mark.points]
        canvas.line(points, fill=mark.colour, width=2 * _SHARP, joint="curve")
        return
    x, y = (value * _SHARP for value in mark.at)
    if isinstance(mark, _Dot):
        r = mark.radius * _SHARP
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=mark.fill, outline=mark.colour, width=2 * _SHARP)
        return
    font = ImageFont.load_default(mark.size * _SHARP)
    for text, colour, bold in mark.pieces:
        canvas.text((x, y), text, fill=colour, font=font, anchor="ls", stroke_width=0.5 if bold else 0)
        x += canvas.textlength(text, font=font) + (8 * _SHARP if text else 0)
