"""Linearised versions for the terminal: which samples pull an answer, what combinations would do. In the driver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from graceful.programs.versions.combine import Predicted
    from graceful.programs.versions.explain import Explanation, Pull


UNEXPLAINED = 0.01
"""Share of the margin that rounding may leave over without a note."""


def screen(explanation: Explanation) -> Group:
    """Return what is shown of an explanation."""
    compared = explanation.other_margin is not None
    said = f"{explanation.version} answers {explanation.answer}"
    if explanation.other_answer is not None:
        said += f", {explanation.against} {explanation.other_answer}"
    begun = f"{explanation.at_start:.3g} at the starting weights"
    if explanation.other_margin is not None:
        begun = f"{explanation.other_margin:.3g} in {explanation.against}"
    parts: list[Any] = [
        Text(f"{explanation.sample} of {explanation.split}, label {explanation.label}: {said}", style="bold"),
        Text(
            f"margin of {explanation.towards} over {explanation.away}: {explanation.margin:.3g}, {begun};"
            f" {explanation.counted} training samples add {explanation.terms:.3g} (the right class's target is"
            f" {explanation.amplitude:g})"
        ),
        _table(explanation, compared=compared),
    ]
    if explanation.missing:
        parts.append(Text(f"note: {explanation.missing} training samples are not in the data any more"))
    scale = abs(explanation.margin) + abs(explanation.at_start)
    if abs(explanation.unexplained) > UNEXPLAINED * scale:
        parts.append(
            Text(
                f"note: {explanation.unexplained:.3g} of the margin is not explained: samples that are missing, a"
                " memory of older data, or a solution that has not converged"
            )
        )
    return Group(*parts)


def _table(explanation: Explanation, *, compared: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("training sample", overflow="fold")
    table.add_column("label")
    for name in ("adds", f"in {explanation.against}", "change") if compared else ("adds",):
        table.add_column(name, justify="right")
    if any(pull.text for pull in explanation.pulls):
        table.add_column("text", overflow="fold")
    for pull in explanation.pulls:
        table.add_row(*map(Text, _cells(pull, compared=compared)))
    return table


def _cells(pull: Pull, *, compared: bool) -> list[str]:
    numbers = [pull.term, *([pull.before or 0.0, pull.change] if compared else [])]
    return [pull.id, pull.label, *(f"{number:+.4g}" for number in numbers), *([pull.text] if pull.text else [])]


def predictions(rows: Sequence[Predicted]) -> Group:
    """Return what combinations would do; the first row is the one that was asked for."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0].factors:
        table.add_column(name, justify="right")
    for title in ("error", *(f"NFR against {name}" for name in rows[0].flips)):
        table.add_column(title, justify="right")
    for row in rows:
        rates = (row.error, *row.flips.values())
        table.add_row(*(f"{factor:g}" for factor in row.factors.values()), *(f"{100.0 * rate:.2f} %" for rate in rates))
    return Group(Text(f"predicted on {rows[0].samples} validation samples; nothing was made"), table)
