"""Recorded predictions: what is written is read back, and anything else is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graceful.errors import DataError
from graceful.metrics.predictions import Predictions
from graceful.programs import predicted


def some(**changes: object) -> Predictions:
    fields = {
        "ids": np.asarray(["b", "a", "c"]),
        "labels": np.asarray(["cat", "dog", "cat"]),
        "predicted": np.asarray(["cat", "", "bird"]),
        "classes": ("bird", "cat"),
        "groups": np.asarray(["one", "one", "two"]),
        "confidence": np.asarray([0.5, 0.0, 0.25]),
    }
    return Predictions(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{}, {"groups": None}, {"classes": None}])
def test_what_is_saved_is_read_back(tmp_path: Path, changes: dict[str, object]) -> None:
    said = some(**changes)
    predicted.save(tmp_path / predicted.FILE, said)
    found = predicted.load(tmp_path / predicted.FILE)
    assert found.ids.tolist() == ["b", "a", "c"]
    assert found.labels.tolist() == said.labels.tolist()
    assert found.predicted.tolist() == ["cat", "", "bird"]
    assert found.classes == said.classes
    assert (found.groups is None) == (said.groups is None)
    assert found.confidence is not None
    assert found.confidence.tolist() == [0.5, 0.0, 0.25]
    assert found.answered().tolist() == [True, False, True]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 half an archive"])
def test_other_bytes_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / predicted.FILE
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"predictions.npz: no predictions") as raised:
        predicted.load(path)
    assert "\n" not in raised.value.message


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    path = tmp_path / predicted.FILE
    with path.open("wb") as file:
        np.savez(file, ids=np.asarray([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="no predictions"):
        predicted.load(path)
