"""A model family as people see it: its newest versions, what they descend from, what every edge cost. Pure values.

Read from tags and metrics that registration derives from `lineage.json`, so that a page costs a few questions however
many versions there are; `lineage.json` stays the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Key(NamedTuple):
    """A registered version: model and number."""

    model: str
    version: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one edge cost.

    Attributes:
        nfr: Negative flip rate in percent; None: not measured.
        budget: Its bound in percent; None: unconstrained.
        verdict: passed, held, unjudged.
        found: Of an edge to a gallery model, the mAP on its index, in percent; None: an ancestor, or not measured.
        share: That mAP as a share of the gallery model's own, in percent.
        searches: Whether it is an edge to a gallery model.
    """

    nfr: float | None
    budget: float | None
    verdict: str
    found: float | None = None
    share: float | None = None
    searches: bool = False

    def words(self) -> str:
        """Return a line for people, such as `NFR 0.50% of 2.00%: passed`, or `searches it, mAP 52.10% (86% of its own):
        passed`."""
        if self.searches:
            found = "not measured" if self.found is None else f"{self.found:.2f}%"
            share = "" if self.share is None else f" ({self.share:.0f}% of its own)"
            return f"searches it, mAP {found}{share}: {self.verdict}"
        measured = "NFR not measured" if self.nfr is None else f"NFR {self.nfr:.2f}%"
        budget = "" if self.budget is None else f" of {self.budget:.2f}%"
        return f"{measured}{budget}: {self.verdict}"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One version of the family.

    Attributes:
        key: Model and number.
        name: Name of the version.
        model_id: Its identity; empty where graceful did not register it.
        run_id: The run that holds its artifacts.
        verdict: passed, held, or empty.
        aliases: Sorted.
        parents: Direct predecessors, with what the edge cost.
        first: Whether it has no predecessors at all; those of a relative may not be shown.
        accuracy: A fraction; None: not measured.
        created: Milliseconds since 1970.
    """

    key: Key
    name: str
    model_id: str
    run_id: str
    verdict: str
    aliases: tuple[str, ...]
    parents: Mapping[Key, Cost]
    first: bool
    accuracy: float | None
    created: int

    def label(self, model: str) -> str:
        """Return its name, with the model's where that is another one."""
        return self.name if self.key.model == model else f"{self.key.model} {self.name}"


@dataclass(frozen=True, kw_only=True)
class Family:
    """Versions of one model, and those of other models that they descend from or that descend from them.

    Attributes:
        model: The registered model.
        members: Newest first; every version before its parents.
        older: Whether the model has versions that are not among them.
    """

    model: str
    members: tuple[Member, ...]
    older: bool

    def serves(self, member: Member) -> bool:
        """Return whether it is this model's champion."""
        return member.key.model == self.model and "champion" in member.aliases

    def children(self, key: Key) -> list[Member]:
        """Return the members that descend from a version, oldest first."""
        return [member for member in reversed(self.members) if key in member.parents]


class Row(NamedTuple):
    """Where a version stands in a drawing: lanes are columns, newest rows come first.

    Attributes:
        lane: Its column.
        joined: Columns that end in it, its own left out.
        before: Columns that are open above it.
        after: Columns that are open below it.
        opened: Columns that begin below it, for further parents.
    """

    lane: int
    joined: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    opened: tuple[int, ...]


def lanes(family: Family) -> list[Row]:
    """Give every version a column: the champion's line the first, branches beside it.

    Parents that are not members get a lane that stays open.
    """
    main = next((member.key for member in family.members if family.serves(member)), None)
    waiting: list[Key | None] = [] if main is None else [None]
    rows = []
    for member in family.members:
        reserved = main is not None and member.key != main  # the first column is the champion's until it is placed
        own = [lane for lane, key in enumerate(waiting) if key == member.key]
        if member.key == main:
            own, main = [0, *own], None
        lane = own[0] if own else _free_lane(waiting, first_reserved=reserved)
        before = tuple(index for index, key in enumerate(waiting) if key is not None)
        for index in own:
            waiting[index] = None
        more: list[Key] = [*member.parents]
        waiting[lane] = more.pop(0) if more else None
        opened = []
        for parent in more:
            if parent not in waiting:
                opened.append(_free_lane(waiting, first_reserved=reserved))
                waiting[opened[-1]] = parent
            else:
                opened.append(waiting.index(parent))
        after = tuple(index for index, key in enumerate(waiting) if key is not None)
        rows.append(Row(lane, tuple(own[1:]), before, after, tuple(opened)))
    return rows


def _free_lane(waiting: list[Key | None], *, first_reserved: bool) -> int:
    """Return an unused column; not the first one while that is reserved for the champion."""
    column = next((lane for lane in range(int(first_reserved), len(waiting)) if waiting[lane] is None), len(waiting))
    if column == len(waiting):
        waiting.append(None)
    return column


def ordered(members: Sequence[Member]) -> tuple[Member, ...]:
    """Return the members newest first, with every version before its parents even where clocks disagree."""
    known = {member.key: member for member in members}
    unborn = dict.fromkeys(known, 0)
    for member in members:
        for parent in member.parents:
            if parent in unborn:
                unborn[parent] += 1
    done: list[Member] = []
    ready = [member for member in members if not unborn[member.key]]
    while ready:
        ready.sort(key=lambda member: (member.created, member.key.version))
        member = ready.pop()
        done.append(member)
        for parent in member.parents:
            if parent in unborn:
                unborn[parent] -= 1
                if not unborn[parent]:
                    ready.append(known[parent])
    ring = [member for member in members if member not in done]  # a lineage that was altered; `chain` refuses it
    return (*done, *sorted(ring, key=lambda member: -member.created))


def tree(family: Family) -> list[str]:
    """Return the drawing as lines of text: a filled dot passed, a hollow one is held; one line for a version."""
    lines: list[str] = []
    for member, row in zip(family.members, lanes(family), strict=True):
        if row.joined:
            lines.append(_connector(row.lane, row.joined, row.before, end="╯"))
        dot = "○" if member.verdict == "held" else "●"
        open_ = set(row.before) - set(row.joined)
        width = max([*open_, row.lane]) + 1
        cells = [dot if lane == row.lane else "│" if lane in open_ else " " for lane in range(width)]
        lines.append(f"{' '.join(cells)}  {sentence(family, member)}")
        if row.opened:
            lines.append(_connector(row.lane, row.opened, tuple(row.after), end="╮"))
    return [line.rstrip() for line in lines]


def _connector(lane: int, ends: tuple[int, ...], open_: tuple[int, ...], *, end: str) -> str:
    """Return a line of text that joins columns to one on their left or right."""
    low, high = min(lane, *ends), max(lane, *ends)
    cells = []
    for column in range(max(high, *open_, lane) + 1):
        if column == lane:
            mark = "┼" if low < lane < high else "├" if high > lane else "┤"
        elif column in ends:
            start_mark, middle = {"╯": ("╰", "┴"), "╮": ("╭", "┬")}[end]
            mark = middle if low < column < high else end if column > lane else start_mark
        elif low < column < high:
            mark = "┼" if column in open_ else "─"
        else:
            mark = "│" if column in open_ else " "
        cells.append(mark + ("─" if low <= column < high else " "))
    return "".join(cells)


def sentence(family: Family, member: Member) -> str:
    """Return the text of a line of the drawing: name, number, verdict, aliases and costs."""
    aliases = "".join(f" @{alias}" for alias in member.aliases)
    text = f"{member.label(family.model)} ({member.key.version}) {member.verdict or 'unknown'}{aliases}"
    return "; ".join([text, *costs(family, member), *(["first version"] if member.first else [])])


def costs(family: Family, member: Member) -> list[str]:
    """Return the negative flips and budget of each edge of a version, in words."""
    names = {member.key: member.label(family.model) for member in family.members}
    return [f"{cost.words()} vs {names.get(key, _relative_name(family, key))}" for key, cost in member.parents.items()]


def _relative_name(family: Family, key: Key) -> str:
    return f"version {key.version}" if key.model == family.model else f"{key.model} version {key.version}"


def document(family: Family) -> list[dict[str, object]]:
    """Return the family as JSON values, newest first."""
    return [
        {
            "model": member.key.model,
            "version": member.key.version,
            "name": member.name,
            "model_id": member.model_id,
            "run_id": member.run_id,
            "verdict": member.verdict,
            "aliases": list(member.aliases),
            "accuracy": member.accuracy,
            "parents": [
                {
                    "model": key.model,
                    "version": key.version,
                    "nfr_pct": cost.nfr,
                    "budget_pct": cost.budget,
                    "verdict": cost.verdict,
                    **({"map_pct": cost.found, "share_pct": cost.share} if cost.searches else {}),
                }
                for key, cost in member.parents.items()
            ],
        }
        for member in family.members
    ]
