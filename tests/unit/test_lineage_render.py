"""What people read about a version: right numbers, nothing that could act as markup."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from graceful.lineage import lineage_table, render
from tests.support.mlflow_records import edge, node_id, record

HOSTILE = 'v1</text><script>alert("1")</script>|[x](javascript:1)`**\n# head'


def test_first_line_says_verdict_worst_flip_rate_and_accuracy() -> None:
    assert (
        render.summary(record("v4", ["v3", "v2", "v1"])) == "PASSED: worst NFR 0.88% vs 3 predecessors, accuracy 0.879"
    )
    assert render.summary(record("v2", ["v1"])) == "PASSED: worst NFR 0.88% vs 1 predecessor, accuracy 0.879"
    unmeasured = record("v2", ["v1"], metrics={}, edges=(edge("v1", value=None),))
    assert render.summary(unmeasured) == "PASSED: NFR not measured vs 1 predecessor"
    assert render.summary(record("v1", verdict="held", metrics={})) == "HELD: first version"


def test_table_has_a_row_per_ancestor_and_one_for_a_first_link() -> None:
    rows = lineage_table([record("v3", ["v2", "v1"]), record("v1")])
    assert [(row["name"], row["against"], row["nfr"]) for row in rows] == [
        ("v3", "v2", 0.0088),
        ("v3", "v1", 0.0088),
        ("v1", None, None),
    ]
    assert rows[0]["interval"] == [0.006, 0.012]
    assert len({tuple(row) for row in rows}) == 1


def test_description_shows_the_picture_the_table_and_why_it_is_held() -> None:
    held = record(
        "v2", ["v1"], verdict="held", reasons=("upper end exceeds the bound",), edges=(edge("v1", verdict="held"),)
    )
    text = render.description(held)
    assert "![ancestors of v2](get-artifact?run_uuid=" + "r" * 32 + "&path=lineage/lineage.svg)" in text
    assert "| v1&ensp; | 0.88% [0.60, 1.20]&ensp; | 2.00%&ensp; | held |" in text
    assert "- upper end exceeds the bound" in text
    assert "://" not in text


def test_predecessors_that_are_listed_become_links() -> None:
    v3 = record("v3", ["v2", "v1"])
    text = render.description(v3, {node_id("v2"): ("glyphs", 7)})
    assert "| [v2](#/models/glyphs/versions/7?workflowType=machine_learning)&ensp; |" in text
    assert "| v1&ensp; |" in text


def test_description_stays_below_the_limit_and_counts_what_is_left_out() -> None:
    many = record("v300", [f"version-with-a-long-name-{index}" for index in range(300)])
    text = render.description(many)
    assert len(text) <= render.DESCRIPTION_LIMIT
    assert "more lines in lineage.json" in text
    assert text.endswith(f"Digest `{many.manifest[:12]}`.")


def test_hostile_names_and_reasons_become_text_in_markdown() -> None:
    held = record("v2", verdict="held", reasons=(HOSTILE,), edges=(edge(HOSTILE),))
    text = render.description(held)
    lines = text.splitlines()
    assert "<script" not in text
    assert "](javascript" not in text.replace("\\]\\(", "")
    row = next(line for line in lines if line.startswith("| v1"))
    assert row.replace("\\|", "").count("|") == 5
    assert not any(line.startswith("# head") for line in lines)


def test_hostile_names_become_text_in_the_picture() -> None:
    svg = render.picture(record("v2", ["v1"], name=HOSTILE, edges=(edge(HOSTILE),)))
    root = ElementTree.fromstring(svg)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags == {"svg", "title", "rect", "text", "path"}


@pytest.mark.parametrize("count", [0, 1, 3, 12])
def test_picture_draws_every_ancestor_within_its_width(count: int) -> None:
    names = [f"v{index}" for index in range(count)]
    root = ElementTree.fromstring(render.picture(record("new", names)))
    assert int(root.attrib["width"]) <= 900
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert all(name in texts for name in names)
    assert sum(text == "NFR 0.88% [0.60, 1.20], budget 2.00%: passed" for text in texts) == count
    boxes = [element for element in root.iter() if element.tag.endswith("rect")][1:]
    assert len(boxes) == count + 1
    for box in boxes:
        assert 0 <= int(box.attrib["x"]) <= int(root.attrib["width"]) - int(box.attrib["width"])
        assert 0 <= int(box.attrib["y"]) <= int(root.attrib["height"]) - int(box.attrib["height"])


def test_picture_says_the_verdict_in_words_and_colour() -> None:
    passed, held = render.picture(record("v2", ["v1"])), render.picture(record("v2", ["v1"], verdict="held"))
    assert ">passed<" in passed
    assert ">held<" in held
    assert "#1a7f37" in passed
    assert "#b35900" in held
    assert "#b35900" not in passed
