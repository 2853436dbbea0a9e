"""The family as an SVG: one line for a version, newest on top, branches as lanes. Pure; any process.

No scripts, no links, no fonts of its own; it is shown as an image, beside a table that carries the links.
"""

from __future__ import annotations

from html import escape

from graceful.lineage.family import Family, Key, Member, lanes

WIDTH = 700
"""Pixels: what MLflow's page leaves on a laptop's screen with its assistant open."""
COLOURS = {"passed": "#1a7f37", "held": "#b35900", "unjudged": "#57606a"}
GREY = "#57606a"
_ROW, _TOP, _LEFT, _LANE = 46, 64, 28, 22
_TEXT = 84
"""Characters that fit beside the lanes in small print."""


def family_svg(family: Family) -> str:
    """Draw the family; the verdict of a version and of every edge in colour and in words."""
    rows = lanes(family)
    place = {
        member.key: (_LEFT + row.lane * _LANE, _TOP + index * _ROW + _ROW // 2)
        for index, (member, row) in enumerate(zip(family.members, rows, strict=True))
    }
    bottom = _TOP + len(rows) * _ROW
    height = bottom + 16
    text = _LEFT + (max((lane for row in rows for lane in (*row.before, *row.after, row.lane)), default=0) + 1) * _LANE
    title = f"{family.model}: {'newest ' if family.older else ''}{len(family.members)} versions"
    marks = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
        ' font-family="system-ui, sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="28" font-size="17" font-weight="600">{escape(cut(title, 60))}</text>',
        f'<text x="16" y="48" font-size="12" fill="{GREY}">newest on top; NFR: right before, wrong now; of: the'
        " budget</text>",
    ]
    for member in family.members:
        marks.extend(_edges(member, place, bottom))
    for member in family.members:
        marks.extend(_version(family, member, place[member.key], text))
    return "\n".join([*marks, "</svg>"]) + "\n"


def _edges(member: Member, place: dict[Key, tuple[int, int]], bottom: int) -> list[str]:
    x, y = place[member.key]
    marks = []
    for parent, cost in member.parents.items():
        colour = COLOURS.get(cost.verdict, GREY)
        to_x, to_y = place.get(parent, (x, bottom + 8))
        dash = "" if parent in place else ' stroke-dasharray="3 4"'
        if to_x == x:
            line = f"M {x} {y} V {to_y}"
        elif to_x > x:  # into a lane of its own at once, then down
            line = f"M {x} {y} C {x} {y + 24}, {to_x} {y + 8}, {to_x} {y + 36} V {to_y}"
        else:
            line = f"M {x} {y} V {max(y, to_y - 36)} C {x} {to_y - 8}, {to_x} {to_y - 24}, {to_x} {to_y}"
        marks.append(f'<path d="{line}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
    return marks


def _version(family: Family, member: Member, where: tuple[int, int], text: int) -> list[str]:
    x, y = where
    colour = COLOURS.get(member.verdict, GREY)
    champion = family.serves(member)
    fill = "#ffffff" if member.verdict != "passed" else colour
    ring = f'<circle cx="{x}" cy="{y}" r="11" fill="none" stroke="{colour}" stroke-width="2"/>' if champion else ""
    names = {one.key: one.label(family.model) for one in family.members}
    costs = [
        f"{cost.words()} vs {names.get(key, f'{key.model} version {key.version}')}"
        for key, cost in member.parents.items()
    ]
    aliases = " ".join(f"@{alias}" for alias in member.aliases)
    accuracy = "" if member.accuracy is None else f", accuracy {member.accuracy:.3f}"
    head = f"{cut(member.label(family.model), 32)}, version {member.key.version}"
    worst = "held" if any(cost.verdict == "held" for cost in member.parents.values()) else member.verdict
    return [
        f'<circle cx="{x}" cy="{y}" r="7" fill="{fill}" stroke="{colour}" stroke-width="2"/>',
        *([ring] if ring else []),
        f'<text x="{text}" y="{y - 3}"><tspan font-weight="600">{escape(head)}</tspan>'
        f'<tspan fill="{colour}" dx="8">{escape(member.verdict or "unknown")}{accuracy}</tspan>'
        f'<tspan fill="#0550ae" font-weight="600" dx="8">{escape(aliases)}</tspan></text>',
        f'<text x="{text}" y="{y + 14}" font-size="12" fill="{COLOURS.get(worst, GREY)}">'
        f"{escape(cut('; '.join(costs) or ('first version' if member.first else ''), _TEXT))}</text>",
    ]


def cut(text: str, length: int) -> str:
    """At most `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"
