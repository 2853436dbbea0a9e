"""Ordinary images in class folders, on disk or in a bucket. Driver and workers; Pillow loads on first use.

Items are photos that are cut to the size of this version when they are read. A version that was trained at another size
or with another decoding decodes them again as it was trained, so that each sees what it would see alone.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from graceful.errors import DataError, SpecError
from graceful.learners.images import ImageLearner, options_of
from graceful.spec import ImageFolderTask
from graceful.spec.networks import Pretrained
from graceful.tasks.augment import random_flip, random_shift
from graceful.tasks.base import Samples, Split
from graceful.tasks.hashing import fractions, split_digest
from graceful.tasks.image_batches import batch_of, grey, squares_of, to_unit_range
from graceful.tasks.image_layout import label_of
from graceful.tasks.image_listing import Image, Listing, ignored_files_note, in_threads, list_images
from graceful.tasks.photos import Frame, Photo, read_photo
from graceful.tasks.unreadable import unreadable_images, unreadable_note

_BOUNDS: dict[str, tuple[float, float]] = {
    "train": (0.0, 0.6),
    "validation": (0.6, 0.7),
    "constraint": (0.7, 0.8),
    "test": (0.8, 1.0),
}
"""Without split folders, images are split by the hash of their relative path."""
_CARVED: dict[str, tuple[float, float]] = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "constraint": (0.9, 1.0)}
"""With them, whichever of validation and constraint has no folder is taken out of the train folder, likewise."""


class ImageFolder:
    """The task of the `image_folder` section.

    Ids are relative paths. Groups are the ids: nothing is known about which images belong together. The root is listed
    on first need, so that a predecessor's transform works where its training data is gone.
    """

    def __init__(self, section: ImageFolderTask) -> None:
        self._section = section
        self.augments = section.shift > 0 or section.flip
        if isinstance(section.network, Pretrained):
            self.learner = ImageLearner(section.network, options_of(section))

    learner: ImageLearner
    """Only where the network is of another package; else the task has none."""
    classes: tuple[str, ...]
    """Class folders, sorted by name, or those the section names, in its order; listed when first asked for."""

    def __getattr__(self, name: str) -> Any:
        if name != "classes":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        self.classes = self._class_names()
        return self.classes

    def _class_names(self) -> tuple[str, ...]:
        folder_names = self._listing.labels("train" if self._listing.splits() else "")
        wanted = tuple(label_of(name) for name in self._section.classes or ())
        for name in wanted:
            if name not in folder_names:
                close = difflib.get_close_matches(name, folder_names, n=1)
                hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(folder_names[:10])}"
                raise SpecError(f"task.classes: {self._section.root} has no class folder {name!r}; {hint}")
        return wanted or tuple(folder_names)

    @cached_property
    def _listing(self) -> Listing:
        section = self._section
        return list_images(section.root, named=section.classes or (), follow_links=section.follow_links)

    @cached_property
    def _unreadable(self) -> Mapping[str, str]:
        """What is wrong with the images that are left out, by their path."""
        skips = self._section.on_bad_sample == "skip"
        return unreadable_images(self._listing.images, self.frame()) if skips else {}

    @cached_property
    def _images(self) -> tuple[Image, ...]:
        return tuple(image for image in self._listing.images if image.path not in self._unreadable)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return a sentence about files that were ignored, and one about images left out, where there are any."""
        root, passed_over = self._section.root, self._listing.passed_over
        ignored = (ignored_files_note(root, passed_over),) if passed_over else ()
        return (*ignored, unreadable_note(root, self._unreadable)) if self._unreadable else ignored

    def restored(self, assets: Mapping[str, Any]) -> ImageFolder:
        """Return this task with the learner that has the assets of another version; this task stays as it is."""
        task = copy.copy(self)
        task.learner = self.learner.restored(assets)
        return task

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        """Build the section's network for [B, channels, size, size] inputs."""
        from graceful import models

        if isinstance(self._section.network, Pretrained):
            return self.learner.network(classes)
        size = self.frame().size
        shape = (self._section.channels, size, size)
        return models.build(self._section.network, classes=len(classes), input_shape=shape)

    def samples(self, split: Split) -> Samples:
        """Open a split; `read` returns a list of `Photo`.

        Raises:
            DataError: An empty split, a class without a training image, a class the train folder lacks.
            KeyError: query or gallery without a folder of that name.
        """
        if split in ("query", "gallery"):
            images, classes = self._open_set_images(split)
        else:
            images, classes = self._closed_set_images(split), self.classes
        position = {name: index for index, name in enumerate(classes)}
        labels = np.asarray([position[image.label] for image in images], dtype=np.int64)
        self._require_images(split, labels, classes)
        ids = np.asarray([image.path for image in images])
        return Samples(
            ids=ids,
            labels=labels,
            classes=classes,
            groups=ids,
            read=partial(_read, images, self.frame()),
            digest=split_digest(ids, labels, classes, in_threads(lambda image: image.tag(), images)),
        )

    def transform(self, items: Any, views: NDArray[np.uint64] | None) -> Tensor:
        """Photos, or Pillow's images -> float32 [B, channels, size, size] in [-1, 1]; augmented if there are views."""
        if isinstance(self._section.network, Pretrained):
            return self.learner.collate(items, views)
        squares: Any = squares_of(items, self.frame())
        if self._section.channels == 1:
            squares = in_threads(grey, squares)
        if views is not None and self.augments:
            squares = random_shift(np.stack(squares), views, self._section.shift, fill="edge")
            if self._section.flip:
                squares = random_flip(squares, views)
        return batch_of(squares, to_unit_range)

    def frame(self) -> Frame:
        """Return how images become squares; a checkpoint is read for it where the network has one."""
        if isinstance(self._section.network, Pretrained):
            return self.learner.frame
        assert self._section.size is not None, "a small network has a size"
        return Frame(size=self._section.size, decode=self._section.decode)

    def _closed_set_images(self, split: Split) -> list[Image]:
        folders = self._listing.splits()
        if not folders:
            images, bounds = list(self._images), _BOUNDS[split]
        elif split in folders and split != "train":
            images, bounds = self._images_of(split), (0.0, 1.0)
        elif split == "test":
            raise DataError(f"task.root: {self._section.root} has split folders but no test; add root/test/<class>")
        else:
            images, bounds = self._images_of("train"), self._train_share(split)
        for image in images:
            if image.label not in self.classes and self._section.classes is None:
                raise DataError(f"{image.where}: class {image.label!r} has no folder in train; add or move the image")
        labelled = [image for image in images if image.label in self.classes]
        chosen = _within(labelled, bounds, salt=0)
        return _within(chosen, (0.0, self._section.share), salt=1) if split == "train" else chosen

    def _train_share(self, split: Split) -> tuple[float, float]:
        """Return the range of the train folder that a split takes; train keeps what splits without a folder leave."""
        folders = self._listing.splits()
        if "constraint" not in folders:
            return _CARVED[split]
        if "validation" in folders:
            return (0.0, 1.0)
        low, high = _CARVED["constraint"]
        return (low, high) if split == "validation" else (0.0, low)

    def _open_set_images(self, split: Split) -> tuple[list[Image], tuple[str, ...]]:
        if split not in self._listing.splits():
            raise KeyError(split)
        classes = {*self._listing.labels("query"), *self._listing.labels("gallery")}
        return self._images_of(split), tuple(sorted(classes))

    def _images_of(self, split: str) -> list[Image]:
        return [image for image in self._images if image.split == split]

    def _require_images(self, split: Split, labels: NDArray[np.int64], classes: tuple[str, ...]) -> None:
        if len(labels) == 0:
            raise DataError(f"task.root: {self._section.root} has no image for the {split} split; add some")
        counts = np.bincount(labels, minlength=len(classes))
        if split == "train" and not counts.all():
            empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
            raise DataError(
                f"task.root: class {empty[0]!r} of {self._section.root} has no training image"
                f" ({len(empty)} such classes); add images or remove the folder"
            )


def _within(images: list[Image], bounds: tuple[float, float], *, salt: int) -> list[Image]:
    """Return the images of which the hash of the path, as a fraction, lies within bounds."""
    if bounds == (0.0, 1.0):
        return images
    low, high = bounds
    image_fractions = fractions([image.path for image in images], salt=salt)
    return [image for image, fraction in zip(images, image_fractions, strict=True) if low <= fraction < high]


def _read(images: Sequence[Image], frame: Frame, positions: NDArray[np.int64]) -> list[Photo]:
    return in_threads(partial(read_photo, frame=frame), [images[position] for position in positions.tolist()])
