"""Versions against their ancestors, and what happened to them, as tables for the terminal and as rows. Driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from rich.table import Table
from rich.text import Text

from graceful.report import Measurement, Report
from graceful.views.rendering import percent


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One version's numbers with the gate's outcome.

    Attributes:
        name: Name of the version.
        outcome: passed or held.
        alone: Its own measurements.
        against: Ancestor -> measurements, nearest first; empty for a first link.
    """

    name: str
    outcome: str
    alone: Mapping[str, Measurement]
    against: Mapping[str, Mapping[str, Measurement]]

    @classmethod
    def of(cls, report: Report, outcome: str) -> Self:
        """Return the row of a report."""
        against = {comparison.against: comparison.measurements for comparison in report.ancestors}
        return cls(name=report.version, outcome=outcome, alone=report.measurements, against=against)


PAIRED = {
    "mAP": "pair_map",
    "query alone": "pair_query_alone_map",
    "gallery alone": "pair_paragon_map",
    "gallery queries": "pair_reversed_map",
    "gain [95 %]": "pair_gain_map",
    "of gallery alone [95 %]": "pair_share_map",
    "R@1": "pair_recall_at_1",
}


@dataclass(frozen=True, kw_only=True)
class JudgedPair:
    """A query model on the index of a gallery model.

    Attributes:
        query: Name of the query model.
        gallery: Name of the gallery model.
        measured: The metrics of the pair.
        outcome: passed, held or unjudged.
    """

    query: str
    gallery: str
    measured: Mapping[str, Measurement]
    outcome: str


def pairs_of(report: Report, outcome: str) -> list[JudgedPair]:
    """Return the pairs of a report."""
    return [
        JudgedPair(
            query=report.version if item.relation == "gallery" else item.against,
            gallery=item.against if item.relation == "gallery" else report.version,
            measured=item.measurements,
            outcome=outcome,
        )
        for item in report.pairs
    ]


def pair_table(pairs: Sequence[JudgedPair], *, title: str) -> Table:
    """Return a table for the terminal: mAP of query model q on gallery model g beside what each finds alone."""
    table = Table(title=title, title_justify="left", caption="mAP and R@1 in percent", caption_justify="left")
    for column in ("query", "gallery", *PAIRED, "verdict"):
        table.add_column(column, justify="left" if column in ("query", "gallery", "verdict") else "right")
    for pair in pairs:
        cells = [percent(pair.measured.get(key), interval="[" in column) for column, key in PAIRED.items()]
        colour = COLOURS.get(pair.outcome, "white")
        table.add_row(pair.query, pair.gallery, *cells, f"[{colour}]{pair.outcome}[/{colour}]")
    return table


ALONE = {"error": "error_rate", "self-test R@1": "self_test_recall_at_1"}
AGAINST = {
    "NFR [95 %]": "negative_flip_rate",
    "relative NFR": "relative_nfr",
    "positive flips": "positive_flip_rate",
    "cross-test R@1": "cross_test_recall_at_1",
    "old/old R@1": "old_old_recall_at_1",
}
COLUMNS = ("version", "against", *ALONE, *AGAINST, "verdict")
COLOURS = {"passed": "green", "held": "yellow"}


def chain_rows(versions: Sequence[Judged]) -> list[dict[str, str]]:
    """Return one row for each version and each of its ancestors, in words and percent; a first link has one row."""
    rows: list[dict[str, str]] = []
    for version in versions:
        alone = {column: percent(version.alone.get(key), interval=False) for column, key in ALONE.items()}
        for ancestor, measurements in (version.against or {"(first link)": {}}).items():
            measured = {
                column: percent(measurements.get(key), interval="[" in column) for column, key in AGAINST.items()
            }
            rows.append({"version": version.name, "against": ancestor, **alone, **measured, "verdict": version.outcome})
    return rows


def chain_table(versions: Sequence[Judged], *, title: str) -> Table:
    """Return the rows as a table for the terminal."""
    table = Table(title=title, title_justify="left", caption="rates in percent", caption_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("version", "against", "verdict") else "right")
    for row in chain_rows(versions):
        colour = COLOURS.get(row["verdict"], "red")
        cells = [row[column] for column in COLUMNS]
        table.add_row(*cells[:-1], f"[{colour}]{cells[-1]}[/{colour}]")
    return table


def history_table(events: Sequence[Mapping[str, Any]], *, title: str) -> Table:
    """Return one row for each event, oldest first."""
    table = Table(title=title, title_justify="left")
    for column in ("time", "what", "version", "champion before", "by", "reason"):
        table.add_column(column, overflow="fold")
    for event in events:
        marks = [mark for mark in ("waived", "forced") if event[mark]]
        marks += [] if event["status"] == "FINISHED" else ["unfinished" if event["status"] == "RUNNING" else "failed"]
        what = f"{event['kind']} ({', '.join(marks)})" if marks else event["kind"]
        version = f"{event['version'] or '?'} {event['name']}".strip()
        before = "" if event["before"] is None else str(event["before"])
        reason = "; ".join([event["reason"], *(f"altered: {words}" for words in event["altered"])])
        cells = (event["time"].partition(".")[0], what, version, before, event["actor"], reason)
        table.add_row(*(Text(cell) for cell in cells))
    return table
