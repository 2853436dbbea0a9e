"""Recorded predictions: what is written is read back, and anything else is refused in one line."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graceful.errors import DataError
from graceful.metrics.predictions import Predictions
from graceful.programs.outputs import recorded_predictions
from graceful.storage import arrays


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
    recorded_predictions.save(tmp_path / recorded_predictions.FILE, said)
    found = recorded_predictions.load(tmp_path / recorded_predictions.FILE)
    assert found.ids.tolist() == ["b", "a", "c"]
    assert found.labels.tolist() == said.labels.tolist()
    assert found.predicted.tolist() == ["cat", "", "bird"]
    assert found.classes == said.classes
    assert (found.groups is None) == (said.groups is None)
    assert found.confidence is not None
    assert found.confidence.tolist() == [0.5, 0.0, 0.25]
    assert found.has_prediction().tolist() == [True, False, True]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 half an archive"])
def test_other_bytes_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / recorded_predictions.FILE
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"predictions.npz: no predictions") as raised:
        recorded_predictions.load(path)
    assert "\n" not in raised.value.message


def rewritten(tmp_path: Path, method: int = zipfile.ZIP_DEFLATED, **columns: bytes) -> Path:
    """A file of predictions in which some arrays are other bytes."""
    path = tmp_path / recorded_predictions.FILE
    recorded_predictions.save(path, some())
    with zipfile.ZipFile(path) as archive:
        held = {entry.filename.removesuffix(".npy"): archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in {**held, **columns}.items():
            archive.writestr(f"{name}.npy", content)
    return path


def written(array: Any) -> bytes:
    text = io.BytesIO()
    np.save(text, array, allow_pickle=False)
    return text.getvalue()


def announced(dtype: str, *shape: int) -> bytes:
    """The header of an array that has nothing in it."""
    text = io.BytesIO()
    np.lib.format.write_array_header_1_0(text, {"descr": dtype, "fortran_order": False, "shape": shape})
    return text.getvalue() + b"x"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"confidence": announced("<f4", 10**13)}, "confidence announces 40000000000000 bytes and holds fewer"),
        ({"ids": announced("<U100000000", 10**6)}, "ids announces 400000000000000 bytes"),
        ({"ids": announced("<U1", -1)}, "no predictions"),
        ({"ids": announced("<U0", 10**12)}, "ids is <U0 of shape"),
        ({"labels": announced("<u4", 3, 10**12)}, "must be u4 with one axis"),
        ({"labels": written(np.zeros(3, dtype=np.int64))}, "labels is int64 of shape"),
        ({"labels": written(np.full(3, 9, dtype=np.uint32))}, "IndexError"),
        ({"labels": written(np.zeros(5, dtype=np.uint32))}, r"must have shape \(3,\)"),
        ({"confidence": written(np.zeros(3)), "groups": written(np.zeros(3))}, "float64 of shape"),
        ({"ids": written(np.zeros(3, dtype="<U2").view("u4") + 0x110000)}, "ids is uint32"),
        ({"ids": written(np.zeros(3, dtype="<U1")).replace(bytes(12), b"\xff" * 12)}, "ids holds what is not text"),
        ({"ids": written(np.zeros(3, dtype="<U1")) + b"x"}, "not those that it holds"),
        (
            {"labels_names": written(np.asarray(["x" * 10**6] * 2)), "labels": written(np.zeros(10**3, np.uint32))},
            "labels would take more than",
        ),
        ({"classes": b"\x93NUMPY\x09\x00"}, "version 9.0"),
    ],
)
def test_what_an_array_announces_is_compared_with_what_it_holds(
    tmp_path: Path, columns: dict[str, bytes], words: str
) -> None:
    path = rewritten(tmp_path, **columns)
    with tiny_memory(), pytest.raises(DataError, match=words) as raised:
        recorded_predictions.load(path)
    assert "\n" not in raised.value.message


def test_an_archive_that_unpacks_to_more_than_is_read_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "LARGEST", 2**20)
    bomb = rewritten(tmp_path, ids=written(np.zeros(2**26, dtype="<U1")))
    assert bomb.stat().st_size < 2**19
    with tiny_memory(), pytest.raises(DataError, match="unpacked more than 1048576 bytes"):
        recorded_predictions.load(bomb)
    with pytest.raises(DataError, match="compressed in another way"):
        recorded_predictions.load(rewritten(tmp_path, zipfile.ZIP_LZMA))


def test_an_entry_that_unpacks_to_more_than_it_says_is_refused(tmp_path: Path) -> None:
    path = rewritten(tmp_path, ids=written(np.zeros(2**20, dtype="<U1")))
    content, size = path.read_bytes(), (2**22 + 128).to_bytes(4, "little")
    assert content.count(size) == 2
    path.write_bytes(content.replace(size, (2**10).to_bytes(4, "little")))
    with tiny_memory(), pytest.raises(DataError, match="no predictions"):
        recorded_predictions.load(path)


@contextmanager
def tiny_memory(most: int = 2**25) -> Iterator[None]:
    """Fail if more memory than that was taken meanwhile."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    path = tmp_path / recorded_predictions.FILE
    with path.open("wb") as file:
        np.savez(file, ids=np.asarray([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="no predictions"):
        recorded_predictions.load(path)
