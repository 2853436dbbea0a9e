"""Guess from the first members of a shard which field each holds; needs only the standard library. Client."""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

from graceful.errors import DataError

SHARD = ".tar"
IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")
LABELS = ("label", "class", "category", "target", "topic", "species", "y")
"""Usual names of the key of the class in a JSON member, the likeliest first."""
LOOKED_AT = 300
"""Members that are looked at."""


def is_pattern(path: Path) -> bool:
    """Return whether a path stands for several shards: `data/*.tar`, `data/train-{000..099}.tar`."""
    return path.suffix.lower() == SHARD and any(sign in path.name for sign in "*?[{")


def first(pattern: Path) -> Path:
    """Return the first shard of a pattern.

    Raises:
        DataError: There is none.
    """
    without_braces = re.sub(r"\{([^{},.]*)[^{}]*\}", r"\1", pattern.name)
    shards = sorted(pattern.parent.glob(without_braces))
    if not shards:
        raise DataError(f"{pattern}: names no shard; check the pattern")
    return shards[0]


def members(path: Path) -> dict[str, str]:
    """Return the members of a shard's samples as a spec names them: `image` or `text`, and `label`.

    Raises:
        DataError: No tar file, or no image or text, or no class in it.
    """
    try:
        endings, document = _first_members(path)
    except (tarfile.TarError, OSError, ValueError, RecursionError) as e:
        raise DataError(f"{path}: cannot be read ({' '.join(str(e).split())[:200]}); check the file") from e
    images = [ending for ending, _ in endings.most_common() if ending in IMAGES]
    keys = [f"json:{name}" for name in LABELS if isinstance(document, dict) and name in document]
    labels = ["cls"] if "cls" in endings else keys
    if not labels or not (images or "txt" in endings):
        held = ", ".join(f".{ending}" for ending in sorted(filter(None, endings))) or "no members KEY.ENDING"
        raise DataError(
            f"{path}: holds {held}; must hold an image or .txt, with a class in .cls or in a .json member ("
            f"{', '.join(LABELS)}); for other members write task.members yourself"
        )
    return {**({"image": images[0]} if images else {"text": "txt"}), "label": labels[0]}


def _first_members(path: Path) -> tuple[Counter[str], Any]:
    """Return how often each ending occurs, and the first JSON member."""
    endings: Counter[str] = Counter()
    document = None
    with tarfile.open(path, mode="r:") as archive:
        for info in itertools.islice(archive, LOOKED_AT):
            name = info.name.rpartition("/")[2]
            if not info.isreg() or name.startswith("."):
                continue
            ending = name.partition(".")[2].lower()
            endings[ending] += 1
            file = archive.extractfile(info) if ending == "json" and document is None else None
            document = json.load(file) if file is not None else document
    return endings, document
