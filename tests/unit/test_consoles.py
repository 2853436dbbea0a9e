"""Tables that are wider than the terminal are printed in parts, without a cell that is cut."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from graceful import consoles
from graceful.report import Measurement
from graceful.views.chain import COLUMNS, Judged, chain_table


def lines(table: Table, width: int) -> list[str]:
    """Return the lines that are printed of a table."""
    console = Console(file=io.StringIO(), width=width)
    for part in consoles.parts(table, console):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def three_versions() -> Table:
    rates = ("negative_flip_rate", "relative_nfr", "positive_flip_rate", "cross_test_recall_at_1")
    measured = {name: Measurement(value=0.1234, lower=0.1111, upper=0.1357, n=1000) for name in rates}
    against = {"v2-with-a-name": measured, "v1": measured}
    return chain_table([Judged(name="v3", outcome="held", alone={}, against=against)], title="glyphs")


@pytest.mark.parametrize("width", [40, 80, 100])
def test_no_cell_is_cut_and_each_part_names_its_rows(width: int) -> None:
    shown = lines(three_versions(), width)
    text = "\n".join(shown)
    assert max(map(len, shown)) <= width
    assert "…" not in text
    assert (text.count("glyphs"), text.count("rates in percent")) == (1, 1)
    assert {word for name in COLUMNS for word in name.split()} <= set(text.replace("┃", " ").split())
    tables = sum(line.startswith("┏") for line in shown)
    assert text.count("v3") == 2 * tables


def test_a_table_that_fits_is_printed_as_it_is() -> None:
    table = three_versions()
    assert list(consoles.parts(table, Console(width=160))) == [table]


def test_a_word_that_is_wider_than_the_terminal_folds() -> None:
    table = Table()
    table.add_column("sample")
    table.add_column("label", justify="right")
    table.add_row("x" * 50, "y" * 30)
    shown = lines(table, 40)
    assert max(map(len, shown)) <= 40
    assert ("".join(shown).count("x"), "".join(shown).count("y")) == (50, 30)
