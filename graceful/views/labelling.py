"""The samples to label next, as tables for the terminal. Runs in the driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from graceful.programs.searches.labelling import Next


def screen(found: Next) -> Group:
    """Return what is known, how many labels decide, and which come next."""
    parts: list[Any] = [Text(line) for line in lines(found)]
    if found.rows:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for head in ("label next", "old", "new", "flip"):
            table.add_column(head, overflow="fold")
        for row in found.rows:
            cells = (row["id"], row["old"], row["new"], f"{100 * row['flip_probability']:.0f} %")
            table.add_row(*(Text(cell) for cell in cells))
        parts.append(table)
    return Group(*parts)


def lines(found: Next) -> list[str]:
    """Return the sentences above the table."""
    standing = found.standing
    low, high = (100 * end for end in standing.range)
    known = standing.flips + standing.no_flips
    labelled = f"{known} of them labelled: {standing.flips} flips"
    text = [
        f"{standing.samples} samples, {standing.disagree} disagreements, {labelled}",
        f"{found.kind}: between {low:.2f} % and {high:.2f} % on these samples, the bound is {100 * standing.bound:g} %",
    ]
    if standing.state == "too few":
        needed = standing.samples_needed
        text.append(f"no label decides it: so few samples cannot show the bound; it needs {needed}, all without a flip")
    elif standing.state != "open":
        text.append(f"decided: {standing.state}, whatever the other labels are")
    elif found.labels is not None:
        say = {name: round(value) for name, value in found.labels.items()}
        ends = f"{say['low']} to {say['high']} in 80 % of cases, {say['at_least']} at least, {say['at_most']} at most"
        text.append(
            f"open: held with {standing.to_hold} more flips, passed with {standing.to_pass} more that are none; about"
            f" {say['expected']} more labels decide it ({ends})"
        )
    return text
