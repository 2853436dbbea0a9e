"""JSON that is nested deeper than Python reads is damage like any other, from any sender."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graceful import gate
from graceful.errors import DataError, IntegrityError, RegistryError
from graceful.lineage import LineageRecord
from graceful.programs.housekeeping import sweep
from graceful.programs.housekeeping.other_copies import OtherCopies
from graceful.storage import Mirror
from graceful.targets import Cache, eviction
from graceful.targets.files import META

DEEP = "[" * 200_000


@pytest.mark.parametrize(
    ("read", "error"),
    [
        (lambda _: gate.Verdict.from_json(DEEP), DataError),
        (lambda _: LineageRecord.from_json(DEEP), RegistryError),
        (lambda folder: Cache.open(folder / "abc"), IntegrityError),
    ],
    ids=["verdict", "lineage", "cache"],
)
def test_deeply_nested_json_is_refused_in_one_line(
    read: Callable[[Path], Any], error: type[Exception], tmp_path: Path
) -> None:
    described(tmp_path)
    with pytest.raises(error, match=r"^[^\n]+$"):
        read(tmp_path)


def described(root: Path) -> Path:
    """A cache whose description is nested too deeply."""
    (root / "abc").mkdir()
    (root / "abc" / META).write_text(DEEP)
    return root / "abc"


@pytest.mark.parametrize("text", [DEEP, "{", "[]", "{}", '{"identity": {}}'], ids=["deep", "cut", "list", "{}", "none"])
def test_a_cache_with_a_damaged_description_belongs_to_no_version(text: str, tmp_path: Path) -> None:
    (described(tmp_path) / META).write_text(text)
    assert eviction.keys_of(tmp_path, predecessors=["d" * 64]) == []
    assert not OtherCopies(tmp_path, Mirror.NONE).outputs(tmp_path / "abc")


def test_a_deeply_nested_snapshot_keeps_all_checkpoints() -> None:
    assert sweep.listed_in(DEEP.encode()) is None
