"""The family as text and picture: lanes, branches, merges, what every edge says."""

from __future__ import annotations

import io
from collections.abc import Mapping
from xml.etree import ElementTree

import pytest
from PIL import Image

from graceful.lineage import drawing, family, pages
from graceful.lineage.family import Cost, Family, Key, Member

PASSED = Cost(nfr=0.5, budget=2.0, verdict="passed")
HELD = Cost(nfr=5.0, budget=2.0, verdict="held")


def member(
    number: int,
    parents: Mapping[int, Cost] | None = None,
    *,
    model: str = "glyphs",
    aliases: str = "",
    **fields: object,
) -> Member:
    verdict = "held" if parents and HELD in parents.values() else "passed"
    known = {
        "key": Key(model, number),
        "name": f"v{number}",
        "model_id": f"m-{number:032x}",
        "run_id": "r" * 32,
        "verdict": verdict,
        "aliases": tuple(aliases.split()),
        "parents": {Key("glyphs", parent): cost for parent, cost in (parents or {}).items()},
        "first": not parents,
        "accuracy": 0.875,
        "created": number,
    }
    return Member(**{**known, **fields})  # type: ignore[arg-type]


def told(*members: Member) -> Family:
    return Family(model="glyphs", members=family.ordered(members), older=False)


LINE = told(member(1), member(2, {1: PASSED}), member(3, {2: PASSED}, aliases="champion"))
BRANCHED = told(
    member(1),
    member(2, {1: PASSED}, aliases="previous"),
    member(3, {2: HELD}),
    member(4, {2: PASSED}, aliases="champion"),
    member(1, {2: PASSED}, model="glyphs-edge", created=5),
)
MERGED = told(
    member(1), member(2, {1: PASSED}), member(3, {1: PASSED}), member(4, {3: PASSED, 2: PASSED}, aliases="champion")
)


def test_line_stays_in_one_lane() -> None:
    assert family.tree(LINE) == [
        "●  v3 (3) passed @champion; NFR 0.50% of 2.00%: passed vs v2",
        "●  v2 (2) passed; NFR 0.50% of 2.00%: passed vs v1",
        "●  v1 (1) passed; first version",
    ]


def test_champion_has_the_first_lane_and_branches_stand_beside_it() -> None:
    assert [line.partition("  v")[0].partition("  glyphs-edge")[0] for line in family.tree(BRANCHED)] == [
        "  ●",
        "● │",
        "│ │ ○",
        "├─┴─╯",
        "●",
        "●",
    ]
    assert "glyphs-edge v1 (1) passed; NFR 0.50% of 2.00%: passed vs v2" in family.tree(BRANCHED)[0]


def test_merge_opens_a_lane_for_each_further_parent() -> None:
    assert [line.partition("  v")[0] for line in family.tree(MERGED)] == ["●", "├─╮", "● │", "│ ●", "├─╯", "●"]
    assert "vs v3; NFR 0.50% of 2.00%: passed vs v2" in family.tree(MERGED)[0]


def test_every_version_stands_before_its_parents_whatever_clocks_say() -> None:
    late = told(member(1, created=9), member(2, {1: PASSED}, created=1))
    assert [one.key.version for one in late.members] == [2, 1]


def test_altered_lineage_with_a_ring_is_still_drawn() -> None:
    ring = told(member(1, {2: PASSED}), member(2, {1: PASSED}))
    assert len(family.tree(ring)) >= 2
    assert drawing.family_svg(ring).count("<circle") == 2


def test_parent_beyond_the_window_is_named_by_its_number() -> None:
    cut = Family(model="glyphs", members=LINE.members[:1], older=True)
    assert family.tree(cut) == ["●  v3 (3) passed @champion; NFR 0.50% of 2.00%: passed vs version 2"]
    assert 'stroke-dasharray="3 4"' in drawing.family_svg(cut)


@pytest.mark.parametrize("shown", [LINE, BRANCHED, MERGED, told()])
def test_picture_says_what_the_tree_says_within_its_frame(shown: Family) -> None:
    root = ElementTree.fromstring(drawing.family_svg(shown))
    assert {element.tag.rpartition("}")[2] for element in root.iter()} <= {
        "svg", "title", "rect", "path", "circle", "text", "tspan",
    }  # fmt: skip
    words = " ".join("".join(element.itertext()) for element in root.iter() if element.tag.endswith("text"))
    for one in shown.members:
        assert all(cost in words for cost in family.costs(shown, one))
        assert f"{one.label('glyphs')}, version {one.key.version}" in words
    circles = [element for element in root.iter() if element.tag.endswith("circle")]
    assert len(circles) == len(shown.members) + sum(shown.serves(one) for one in shown.members)
    width, height = int(root.attrib["width"]), int(root.attrib["height"])
    assert all(0 < float(c.attrib["cx"]) < width and 0 < float(c.attrib["cy"]) < height for c in circles)
    image = Image.open(io.BytesIO(drawing.family_png(shown)))
    assert image.size == (2 * width, 2 * height)


def test_verdicts_have_colours_beside_their_words() -> None:
    svg = drawing.family_svg(BRANCHED)
    assert svg.count(f'stroke="{drawing.COLOURS["held"]}"') == 2  # one edge, one version
    assert "NFR 5.00% of 2.00%: held vs v2" in svg


def test_hostile_names_become_text_in_the_picture() -> None:
    svg = drawing.family_svg(told(member(1, name='</text><script>alert("1")</script>')))
    assert "<script" not in svg


def test_page_lists_versions_links_relatives_and_stays_short() -> None:
    text = pages.markdown(BRANCHED, "r" * 32, "<svg/>")
    assert text.startswith("glyphs: champion is [v4](#/models/glyphs/versions/4?workflowType=machine_learning)")
    assert f"![lineage of glyphs](get-artifact?run_uuid={'r' * 32}&path=lineage/family.svg&picture=" in text
    row = next(line for line in text.splitlines() if line.startswith("| [v2]"))
    assert "[glyphs-edge v1](#/models/glyphs-edge/versions/1?" in row
    assert "v3, v4, " in row
    assert "://" not in text
    long = told(*(member(n, {n - 1: PASSED} if n > 1 else {}, name=f"{n}-" + "x" * 60) for n in range(1, 101)))
    assert 3000 < len(pages.markdown(long, "r" * 32, "<svg/>")) <= 4500
    assert pages.markdown(long, "r" * 32, "<svg/>").endswith("Older ones are in the table of versions below.")


def test_picture_of_a_page_keeps_the_champion_however_old_it_is() -> None:
    old = told(member(1, aliases="champion"), *(member(n, {1: HELD}) for n in range(2, 30)))
    short = pages.shortened(old, 5)
    assert [one.key.version for one in short.members] == [29, 28, 27, 26, 25, 1]
    assert short.older
