"""The samples that flipped, worst first, with their pictures. Runs in the driver."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from graceful.metrics.predictions import Predictions, join
from graceful.tasks.base import Samples
from graceful.tasks.names import positions_of
from graceful.tasks.photos import Frame, Photo
from graceful.tasks.shards.items import ShardRows
from graceful.tasks.table.rows import Rows

MOST = 1000
"""Flips kept for each ancestor; the report counts all of them."""
THUMBNAIL = 56
"""Longer side of a picture, in pixels."""
AT_ONCE = 32
"""Samples that are read together."""
EXCERPT = 400
"""Characters of a sample's text that are shown."""
ROOM = 300_000
"""Bytes that all pictures of a page may take together, so that it can be mailed."""


@dataclass(frozen=True, kw_only=True)
class Flip:
    """One sample that an ancestor answers right and the new version wrong.

    Attributes:
        id: The id of the sample.
        against: Name of the ancestor.
        label: True class.
        predicted: Prediction of the new version.
        confidence: Probability it gives to that.
        severity: What the true class lost, its probability in the ancestor minus that in the new version, in [-1, 1].
        group: What the sample belongs to.
    """

    id: str
    against: str
    label: str
    predicted: str
    confidence: float
    severity: float
    group: str


def negative_flips(new: Predictions, old: Predictions, *, against: str) -> tuple[Flip, ...]:
    """Return the negative flips of one comparison, the most severe first; at most `MOST`."""
    joined = join(new, old)
    new = new.unique()
    flipped = np.flatnonzero(joined.negative_flips)
    rows = np.searchsorted(new.ids, joined.ids[flipped])
    none = np.zeros(len(joined))
    before, now = joined.old_label_confidence, joined.label_confidence
    confidence_lost = ((none if before is None else before) - (none if now is None else now))[flipped]
    confidence = (none if joined.confidence is None else joined.confidence)[flipped]
    groups = new.ids if new.groups is None else new.groups
    flips = [
        Flip(
            id=str(new.ids[row]),
            against=against,
            label=str(new.labels[row]),
            predicted=str(new.predicted[row]),
            confidence=float(confidence[index]),
            severity=float(confidence_lost[index]),
            group=str(groups[row]),
        )
        for index, row in enumerate(rows.tolist())
    ]
    return tuple(sorted(flips, key=lambda flip: (-flip.severity, flip.id))[:MOST])


def pictures(flips: Sequence[Flip], samples: Samples) -> dict[str, str]:
    """Sample id -> PNG as a data URI, for samples that are images.

    Together they take `ROOM` bytes at most: those of the first flips are kept.
    """
    uris: dict[str, str] = {}
    remaining = ROOM
    for name, png in thumbnails([flip.id for flip in flips], samples).items():
        uri = "data:image/png;base64," + base64.b64encode(png).decode()
        if len(uri) <= remaining:
            uris[name] = uri
            remaining -= len(uri)
    return uris


def thumbnails(ids: Sequence[str], samples: Samples) -> dict[str, bytes]:
    """Sample id -> PNG, for samples that are images (grey or RGB arrays of bytes, photos, or Pillow images)."""
    position = _positions(ids, samples)
    known_ids = list(position)
    if not known_ids:
        return {}
    drawn: dict[str, bytes | None] = {}
    for start in range(0, len(known_ids), AT_ONCE):
        names = known_ids[start : start + AT_ONCE]
        items = samples.read(np.asarray([position[name] for name in names], dtype=np.int64))
        if isinstance(items, Mapping) or len(items) != len(names):
            return {}
        if isinstance(items, Rows):
            if items.image is None:
                return {}
            items = items.photos(items.image, Frame(size=THUMBNAIL))
        drawn |= {name: _picture(item) for name, item in zip(names, items, strict=True)}
    return {name: png for name, png in drawn.items() if png is not None}


def excerpts(ids: Sequence[str], samples: Samples) -> dict[str, str]:
    """Sample id -> the beginning of its text, for samples that are texts, pairs of texts, or rows of a table."""
    position = _positions(ids, samples)
    known_ids = list(position)
    if not known_ids:
        return {}
    items = samples.read(np.asarray([position[name] for name in known_ids], dtype=np.int64))
    if isinstance(items, Rows | ShardRows):
        texts = items.texts()
    else:
        texts = list(map(_text, items)) if isinstance(items, list) else []
    return {name: text[:EXCERPT] for name, text in zip(known_ids, texts, strict=False) if text}


def _positions(ids: Sequence[str], samples: Samples) -> dict[str, int]:
    """Return where those ids are that the samples have, in their order and each once."""
    names = list(dict.fromkeys(ids))
    places = positions_of(np.asarray(names, dtype=np.str_), samples.ids).tolist()
    return {name: place for name, place in zip(names, places, strict=True) if place >= 0}


def _text(item: Any) -> str:
    """Return a text, or texts that belong together; empty for anything else."""
    parts = item if isinstance(item, tuple | list) else (item,)
    return " | ".join(parts) if parts and all(isinstance(part, str) for part in parts) else ""


def _picture(item: Any) -> bytes | None:
    from PIL import Image

    if isinstance(item, Photo):
        item = item.thumbnail(THUMBNAIL)
    if not isinstance(item, Image.Image | np.ndarray | Tensor):
        return None
    if not isinstance(item, Image.Image):
        array = np.asarray(item)
        if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
            return None
        top = int(array.max(initial=1))
        item = Image.fromarray(array if top > 32 else (array.astype(np.uint16) * 255 // max(top, 1)).astype(np.uint8))
    scale = THUMBNAIL / max(item.size)
    size = (max(1, round(item.width * scale)), max(1, round(item.height * scale)))
    buffer = io.BytesIO()
    item.convert("L" if item.mode in ("1", "L") else "RGB").resize(size).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
