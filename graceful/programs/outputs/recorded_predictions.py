"""The prediction of a version for every test sample, in a file beside it, so that versions compare without a run.

Names are kept once and numbered, so that the file is a few bytes for a sample. No pickle.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError
from graceful.metrics.predictions import Predictions
from graceful.storage import arrays, write_bytes

FILE = "predictions.npz"
_CODED = ("labels", "predicted", "groups")
_KINDS = {"ids": "U", "classes": "U", "confidence": "f4"} | {
    name: kind for column in _CODED for name, kind in ((column, "u4"), (f"{column}_names", "U"))
}
"""Type of each array of the file."""


def save(path: Path, predictions: Predictions) -> None:
    """Write predictions with string ids, labels and groups."""
    columns: dict[str, NDArray[Any]] = {
        "ids": predictions.ids.astype(np.str_),
        "classes": np.asarray(predictions.classes if predictions.classes is not None else [], dtype=np.str_),
        "confidence": np.asarray(
            np.zeros(len(predictions)) if predictions.confidence is None else predictions.confidence, np.float32
        ),
    }
    for name, column in {
        "labels": predictions.labels,
        "predicted": predictions.predicted,
        "groups": predictions.groups,
    }.items():
        if column is not None:
            names, codes = np.unique(column.astype(np.str_), return_inverse=True)
            columns |= {name: codes.astype(np.uint32), f"{name}_names": names}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **columns)
    write_bytes(path, buffer.getvalue())


def load(path: Path) -> Predictions:
    """Read what `save` wrote.

    Raises:
        DataError: Not such a file, or one that would take more than `arrays.LARGEST` bytes.
    """
    arrays_by_name = arrays.read_npz(path, kinds=_KINDS, description="predictions", largest=arrays.LARGEST)
    try:
        return Predictions(
            ids=arrays_by_name["ids"],
            labels=_named(arrays_by_name, "labels"),
            predicted=_named(arrays_by_name, "predicted"),
            classes=tuple(arrays_by_name["classes"].tolist()) or None,
            groups=_named(arrays_by_name, "groups") if "groups" in arrays_by_name else None,
            confidence=arrays_by_name["confidence"].astype(np.float64),
        )
    except (KeyError, IndexError, MemoryError) as e:
        raise DataError(f"{path}: no predictions ({type(e).__name__}: {e}); restore it from a backup") from e


def _named(arrays_by_name: Mapping[str, NDArray[Any]], column: str) -> NDArray[Any]:
    """Return names in place of numbers."""
    names, codes = arrays_by_name[f"{column}_names"], arrays_by_name[column]
    if len(codes) * names.itemsize > arrays.LARGEST:
        raise MemoryError(f"{column} would take more than {arrays.LARGEST} bytes")
    named: NDArray[Any] = names[codes]
    return named
