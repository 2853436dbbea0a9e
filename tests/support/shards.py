"""Shards of handwritten digits, and of texts and numbers, as WebDataset's writer makes them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

Sample = tuple[str, Mapping[str, bytes]]
"""Key, and the members by ending."""


@lru_cache(maxsize=1)
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the images [N, 8, 8] with values 0 to 255, and labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images * 15).astype(np.uint8), bunch.target.astype(np.int64)


def picture(pixels: np.ndarray, *, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).resize((16, 16)).save(file, format=format)
    return file.getvalue()


def samples(count: int, *, start: int = 0) -> list[Sample]:
    """Digits with a class, a text and numbers; the class also in the JSON member."""
    images, labels = digits()
    made: list[Sample] = []
    for index in range(start, start + count):
        image, label = images[index % len(images)], int(labels[index % len(labels)])
        facts = {
            "meta": {"category": f"digit {label}"},
            "ink": float(image.mean()),
            "row": index,
            "owner": f"owner-{index // 4}",
        }
        members = {
            "png": picture(image),
            "cls": f"{label}\n".encode(),
            "txt": f"the digit number {label} of {index}".encode(),
            "json": json.dumps(facts).encode(),
        }
        made.append((f"{index:06d}", members))
    return made


def packed(samples: Iterable[Sample]) -> bytes:
    """Return a shard."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for key, members in samples:
            for ending, data in members.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def write(folder: Path, samples: Sequence[Sample], *, shards: int = 3) -> Path:
    """Write shards 000.tar, 001.tar ... of equal size; returns a pattern for all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(samples) // shards)
    for number in range(shards):
        (folder / f"{number:03d}.tar").write_bytes(packed(samples[number * size : (number + 1) * size]))
    return folder / "*.tar"
