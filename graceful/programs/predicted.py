"""What a version said about every test sample, as a file beside it: any two versions compare without running. Driver.

Names are kept once and numbered, so that the file is a few bytes for a sample. No pickle.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError
from graceful.metrics.predictions import Predictions
from graceful.storage import read_bytes, write_bytes

FILE = "predictions.npz"


def save(path: Path, said: Predictions) -> None:
    """Write predictions with string ids, labels and groups."""
    columns: dict[str, NDArray[Any]] = {
        "ids": said.ids.astype(np.str_),
        "classes": np.asarray(said.classes if said.classes is not None else [], dtype=np.str_),
        "confidence": np.asarray(np.zeros(len(said)) if said.confidence is None else said.confidence, np.float32),
    }
    for name, column in {"labels": said.labels, "predicted": said.predicted, "groups": said.groups}.items():
        if column is not None:
            names, codes = np.unique(column.astype(np.str_), return_inverse=True)
            columns |= {name: codes.astype(np.uint32), f"{name}_names": names}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **columns)
    write_bytes(path, buffer.getvalue())


def load(path: Path) -> Predictions:
    """Read what `save` wrote.

    Raises:
        DataError: Not such a file.
    """
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as held:
            return Predictions(
                ids=held["ids"],
                labels=held["labels_names"][held["labels"]],
                predicted=held["predicted_names"][held["predicted"]],
                classes=tuple(held["classes"].tolist()) or None,
                groups=held["groups_names"][held["groups"]] if "groups" in held else None,
                confidence=held["confidence"].astype(np.float64),
            )
    except (ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as e:
        raise DataError(f"{path}: no predictions ({type(e).__name__}: {e}); restore it from a backup") from e
