"""Which samples flipped, worst first, and what they look like: for people who want to see what broke. In the driver."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graceful.metrics.predictions import Predictions, join
from graceful.tasks.base import Samples

MOST = 1000
"""Flips kept for each ancestor; the report counts all of them."""
THUMBNAIL = 56
"""Longer side of a picture, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Flip:
    """One sample that an ancestor answers right and the new version wrong.

    Attributes:
        id: Of the sample.
        against: Name of the ancestor.
        label: True class.
        predicted: What the new version says.
        confidence: Probability it gives to that.
        group: What the sample belongs to.
    """

    id: str
    against: str
    label: str
    predicted: str
    confidence: float
    group: str


def negative_flips(new: Predictions, old: Predictions, *, against: str) -> tuple[Flip, ...]:
    """The negative flips of one comparison, the most confident mistakes first; at most `MOST`."""
    joined = join(new, old)
    wanted = set(joined.ids[joined.negative_flips].tolist())
    rows = [row for row, name in enumerate(new.ids.tolist()) if name in wanted]
    sure = np.zeros(len(new)) if new.confidence is None else new.confidence
    groups = new.ids if new.groups is None else new.groups
    rows.sort(key=lambda row: (-float(sure[row]), str(new.ids[row])))
    return tuple(
        Flip(
            id=str(new.ids[row]),
            against=against,
            label=str(new.labels[row]),
            predicted=str(new.predicted[row]),
            confidence=float(sure[row]),
            group=str(groups[row]),
        )
        for row in rows[:MOST]
    )


def pictures(flips: Sequence[Flip], samples: Samples) -> dict[str, str]:
    """Sample id -> PNG as a data URI, for samples that are images."""
    found = thumbnails([flip.id for flip in flips], samples)
    return {name: "data:image/png;base64," + base64.b64encode(png).decode() for name, png in found.items()}


def thumbnails(ids: Sequence[str], samples: Samples) -> dict[str, bytes]:
    """Sample id -> PNG, for samples that are images (grey or RGB arrays of bytes, or Pillow images)."""
    position = {name: row for row, name in enumerate(samples.ids.tolist())}
    wanted = [name for name in dict.fromkeys(ids) if name in position]
    if not wanted:
        return {}
    items = samples.read(np.asarray([position[name] for name in wanted], dtype=np.int64))
    drawn = {name: _picture(item) for name, item in zip(wanted, items, strict=True)}
    return {name: png for name, png in drawn.items() if png is not None}


def _picture(item: Any) -> bytes | None:
    from PIL import Image

    if not isinstance(item, Image.Image):
        array = np.asarray(item)
        if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
            return None
        top = int(array.max(initial=1))
        item = Image.fromarray(array if top > 32 else (array.astype(np.uint16) * 255 // max(top, 1)).astype(np.uint8))
    scale = THUMBNAIL / max(item.size)
    size = (max(1, round(item.width * scale)), max(1, round(item.height * scale)))
    buffer = io.BytesIO()
    item.convert("RGB").resize(size).save(buffer, format="PNG")
    return buffer.getvalue()
