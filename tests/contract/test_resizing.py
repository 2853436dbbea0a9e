"""A run resumes with another number of ranks: 2, then 1, then 2 again, with every engine that supports it."""

from __future__ import annotations

from pathlib import Path

import pytest

from graceful import spec
from tests.support.resizing import KINDS, largest_difference, resized

pytestmark = pytest.mark.timeout(3600)


def test_ranks_change_and_the_steps_stay_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    """Sums over ranks come in another order: float32 rounds them differently, and nothing else does."""
    found = resized(spec.AdamW(lr=0.01), tmp_path)
    for kind in KINDS:
        assert found[kind]["losses"] == pytest.approx(found[kind]["whole"]["losses"], rel=1e-5)
        assert largest_difference(found[kind]["weights"], found[kind]["whole"]["weights"]) < 1e-5
