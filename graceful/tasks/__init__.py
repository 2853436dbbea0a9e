"""Tasks: a model, its data and its transform, built from a spec's `task` section. Driver and workers; loads lazily.

`build` is the factory; `transform_digest` and `view_numbers` decide which cached predecessor outputs may be used for
which sample. Importing this package loads neither torch nor any library that a single task needs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from graceful.tasks.hashing import hash_ids, in_split, split_digest, view_numbers

if TYPE_CHECKING:
    from graceful import spec
    from graceful.tasks.base import Task

__all__ = ["build", "hash_ids", "in_split", "split_digest", "transform_digest", "view_numbers"]

_TRANSFORM_KEYS: dict[str, tuple[str, ...]] = {
    "glyphs": ("shift",),
    "digits": ("shift",),
    "image_folder": ("size", "channels", "shift", "flip", "decode"),
    "table": ("columns", "size", "channels", "shift", "flip", "decode", "augment"),
    "shards": ("members", "size", "channels", "shift", "flip", "decode", "augment"),
    "python": ("options",),
}
"""Keys of each section on which its transform depends; keys that select data or the network are left out."""

_TOKENS = ("kind", "checkpoint", "revision", "max_length")
"""Keys of the network of a table or of shards on which its transform depends: how texts become tokens."""

_NUMBERS = ("kind", "model", "checkpoint", "revision", "weights")
"""Keys of a network of another package for images on which its transform depends: how images are scaled."""

_TRANSFORM_VERSION = 1
"""Raised whenever a shipped transform changes its output, so that outputs cached before are not joined to it."""


def build(section: spec.Task, *, trusted: Collection[str] | None = None) -> Task:
    """Build the task a section describes, with its learner. Opens no data yet beyond what names the classes.

    Args:
        section: The section of a spec.
        trusted: Digests of which a user's code must have one, for a section that a registry or a bucket recorded;
            None: the section is the user's own, and what it names is run.

    Raises:
        SpecError: The section asks for what the task has not (a class, an option, a file).
        DataError: The data is missing, corrupt or empty.
        IntegrityError: Its code is not trusted, or was changed.
        StorageError: A bucket cannot be reached.
    """
    from graceful import spec

    task = _data_of(section, trusted=trusted)
    if not isinstance(section, spec.ImageFolderTask | spec.PythonTask) or section.learner is None:
        return task
    from graceful.tasks.learned_task import with_learner

    return with_learner(task, section.learner)


def _data_of(section: spec.Task, *, trusted: Collection[str] | None) -> Task:
    from graceful import spec

    if isinstance(section, spec.GlyphsTask):
        from graceful.tasks.glyphs.task import Glyphs

        return Glyphs(section)
    if isinstance(section, spec.DigitsTask):
        from graceful.tasks.digits import Digits

        return Digits(section)
    if isinstance(section, spec.ImageFolderTask):
        from graceful.tasks.image_folder import ImageFolder

        return ImageFolder(section)
    if isinstance(section, spec.TableTask):
        from graceful.tasks.table.task import TableOfRows

        return TableOfRows(section)
    if isinstance(section, spec.ShardsTask):
        from graceful.tasks.shards.task import Shards

        return Shards(section)
    from graceful.tasks.python_task import load_task

    return load_task(section, trusted=trusted)


def transform_digest(section: spec.Task) -> str:
    """Return the SHA-256 of what determines the transform: equal digests mean equal inputs for an item and a view.

    Selecting other data (fonts, classes, root, split) or another network leaves it unchanged. A Python task's file
    counts with its content, because its transform may be anything in it.

    Raises:
        SpecError: A Python task's file cannot be read.
    """
    from graceful.storage import sha256_json

    return sha256_json(_transform_parts(section))


_AUGMENTATION = ("shift", "flip", "augment")
_SIZE = {"glyphs": 28, "digits": 8}
"""Pixels a side of images that come in one size."""


def preprocessing(section: spec.Task) -> tuple[dict[str, Any], int | None]:
    """Return what determines the clean inputs of a task but for their size, and the side of its images in pixels.

    None where there are no images, or the size is the checkpoint's. Of a Python task only that it is one: its file also
    holds the network, which query and gallery models do not share.
    """
    parts = {"kind": section.kind} if section.kind == "python" else _transform_parts(section)
    left_out = (*_AUGMENTATION, "size", "source")
    clean = {key: value for key, value in parts.items() if key not in left_out}
    return clean, _SIZE.get(section.kind, getattr(section, "size", None))


def _transform_parts(section: spec.Task) -> dict[str, Any]:
    from graceful import spec
    from graceful.spec.networks import Pretrained

    parts: dict[str, Any] = {"kind": section.kind, "version": _TRANSFORM_VERSION}
    values = section.model_dump(mode="json")
    parts.update({key: values[key] for key in _TRANSFORM_KEYS[section.kind] if key in values})
    of_images = (
        isinstance(section, spec.ImageFolderTask)
        or (isinstance(section, spec.ShardsTask) and bool(section.members.image))
        or (isinstance(section, spec.TableTask) and section.columns.image is not None)
    )
    if isinstance(section, spec.TableTask | spec.ShardsTask) and not of_images:
        parts["network"] = {key: values["network"].get(key) for key in _TOKENS}
        parts["columns"].pop("weight", None)  # no network reads it
    if of_images and isinstance(getattr(section, "network", None), Pretrained):
        parts["network"] = {key: values["network"].get(key) for key in _NUMBERS}
    if isinstance(section, spec.PythonTask):
        from graceful.tasks.python_task import source_digest

        parts["source"] = source_digest(section)
    if isinstance(section, spec.ImageFolderTask | spec.PythonTask) and section.learner is not None:
        from graceful.learners import registry

        parts["learner"] = {**section.learner.model_dump(mode="json"), **registry.identity(section.learner.kind)}
    return parts
