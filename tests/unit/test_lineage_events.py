"""What follows from events: champion, previous, and what may be done with a version."""

from __future__ import annotations

import pytest

from graceful.errors import SpecError
from graceful.lineage.events import Event, renumbered, replay, standing
from graceful.lineage.listing import Listed
from graceful.lineage.reference import Reference, find
from tests.support.mlflow_records import node_id


def event(kind: str, version: int, **changes: object) -> Event:
    return Event(**{"kind": kind, "model": "glyphs", "version": version, "status": "FINISHED", **changes})  # type: ignore[arg-type]


def promoted(*numbers: int) -> list[Event]:
    return [event("promotion", number) for number in numbers]


@pytest.mark.parametrize(
    ("events", "champion", "previous"),
    [
        ([], None, None),
        (promoted(1), 1, None),
        (promoted(1, 2, 3), 3, 2),
        ([*promoted(1, 2, 3), event("rollback", 2)], 2, 1),
        ([*promoted(1, 2, 3), event("rollback", 2), event("rollback", 1)], 1, None),
        ([*promoted(1, 2, 3), event("rollback", 1)], 1, None),
        ([*promoted(1, 2, 3), event("rollback", 2), *promoted(4)], 4, 2),
        ([*promoted(1, 2), event("rollback", 5)], 5, 2),
        ([*promoted(1, 2), event("repair", 2)], 2, 1),
        ([*promoted(1, 2, 1, 2), event("rollback", 1)], 1, 2),
        ([*promoted(1, 2, 3), event("retirement", 2)], 3, 1),
        ([*promoted(1, 2, 1, 2), event("retirement", 1)], 2, None),
        ([*promoted(1, 2, 3), event("retirement", 3, forced=True)], None, 2),
        ([*promoted(1, 2, 3), event("retirement", 3, forced=True), *promoted(4)], 4, 2),
        ([*promoted(1, 2), event("hold", 1), event("release", 1)], 2, 1),
        ([*promoted(1, 2), event("promotion", 3, status="RUNNING"), event("rollback", 1, status="FAILED")], 2, 1),
    ],
)
def test_replay(events: list[Event], champion: int | None, previous: int | None) -> None:
    assert replay(events) == (champion, previous)


@pytest.mark.parametrize(
    ("verdict", "events", "found"),
    [
        ("passed", [], "passed"),
        ("held", [], "held"),
        ("passed", [event("hold", 1)], "held"),
        ("passed", [event("hold", 1, status="FAILED")], "passed"),
        ("passed", [event("hold", 1), event("release", 1)], "passed"),
        ("held", [event("release", 1)], "held"),
        ("held", [event("promotion", 1, waived=True)], "waived"),
        ("held", [event("promotion", 1, waived=True), event("promotion", 1)], "waived"),
        ("held", [event("promotion", 1, waived=True), event("hold", 1)], "held"),
        ("passed", [event("retirement", 1), event("release", 1), event("promotion", 1, waived=True)], "retired"),
    ],
)
def test_standing(verdict: str, events: list[Event], found: str) -> None:
    assert standing(verdict, events) == found


def test_a_version_that_was_listed_anew_keeps_its_events() -> None:
    events = [event("promotion", 3, node=node_id("v3")), event("promotion", 4)]
    assert [item.version for item in renumbered(events, {node_id("v3"): 9})] == [9, 4]


# --- how people name versions -----------------------------------------------------------------------------------------


def listed(version: int, name: str, gate: str = "passed", *aliases: str) -> Listed:
    return Listed(version=version, name=name, model_id="", gate=gate, aliases=aliases, nfr_max_pct="", created=0)


FAMILY = [
    listed(4, "v4", "held"),
    listed(3, "may", "passed", "champion"),
    listed(2, "1", "retired", "previous"),
    listed(1, "v1"),
]


@pytest.mark.parametrize(
    ("text", "version"),
    [("glyphs", 3), ("glyphs:4", 4), ("glyphs:may", 3), ("glyphs@previous", 2), ("glyphs:1", 1), ("glyphs:v1", 1)],
)
def test_find(text: str, version: int) -> None:
    reference = Reference.parse(text)
    assert str(reference) == text
    assert find(reference, FAMILY).version == version


@pytest.mark.parametrize("text", ["", "glyphs:", "glyphs@", "glyphs:1@x", "Glyphs", "a b", "glyphs:v1\n", "../x", "-x"])
def test_other_forms_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(SpecError, match=r"version .*: must be MODEL, MODEL:NUMBER, MODEL:NAME or MODEL@ALIAS"):
        Reference.parse(text)


def test_unknown_version_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        SpecError, match=r"glyphs: no version glyphs@candidate; there are 4 \(v4\), 3 \(may @champion\)"
    ):
        find(Reference.parse("glyphs@candidate"), FAMILY)
    with pytest.raises(SpecError, match=r"glyphs: no version passed; there are 4 \(v4\)$"):
        find(Reference.parse("glyphs"), FAMILY[:1])
    with pytest.raises(SpecError, match="model glyphs: the registry has no version of it"):
        find(Reference.parse("glyphs"), [])
