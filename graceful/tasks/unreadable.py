"""Which images of a folder cannot be read, found once on a node and kept. Driver and workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from graceful import homes, storage
from graceful.errors import DataError
from graceful.tasks.image_listing import Image, in_threads, printable
from graceful.tasks.photos import Frame, read_photo
from graceful.tasks.table.stored import opened


def unreadable_images(images: Sequence[Image], frame: Frame) -> Mapping[str, str]:
    """Return what is wrong with each image that cannot be read, by its path.

    Every image is decoded once on a node. The result is kept below `cache/images` of graceful's folder, under a digest
    of the images' contents, and other processes wait for it.

    Args:
        images: Of one root.
        frame: How they become squares.

    Raises:
        StorageError: The images' bucket cannot be reached, or the disk is full.
    """
    contents = [[image.path, tag] for image, tag in zip(images, in_threads(_tag, images), strict=True)]
    digest = storage.sha256_json([contents, asdict(frame)])
    meta = opened(homes.folder() / "cache" / "images" / digest, partial(_found, images, frame))
    return dict(meta["unreadable"])


def unreadable_note(root: str, reasons: Mapping[str, str]) -> str:
    """Return how many images were left out, and what is wrong with the first, as one sentence."""
    first = reasons[min(reasons)]
    images = "image that cannot be read was" if len(reasons) == 1 else "images that cannot be read were"
    return f"{printable(root)}: {len(reasons)} {images} left out, first {first}"


def _tag(image: Image) -> str:
    return image.tag()


def _found(images: Sequence[Image], frame: Frame, _folder: Path) -> dict[str, Any]:
    reasons = in_threads(partial(_reason, frame=frame), images)
    return {
        "unreadable": {image.path: reason for image, reason in zip(images, reasons, strict=True) if reason is not None}
    }


def _reason(image: Image, frame: Frame) -> str | None:
    try:
        read_photo(image, frame)
    except DataError as e:
        return e.message
    return None
