"""Tasks and networks in a spec: the shipped tasks and tasks of your own. Runs in every process."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from graceful import addresses
from graceful.sections import Section
from graceful.spec.networks import Network, PretrainedImages, is_pretrained, require_image_network
from graceful.spec.shards import ShardsTask
from graceful.spec.stages import StagedNetwork
from graceful.spec.table import TableTask


class GlyphsTask(Section):
    """Characters of real typefaces, 28x28; split by design family."""

    kind: Literal["glyphs"] = "glyphs"
    fonts: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the training families this version may learn from, in a fixed order: growing data."""
    classes: Annotated[int, Field(ge=2)] | None = None
    """Number of closed-set classes this version knows, in a fixed order; None: all of them."""
    characters: Literal["alphanumeric", "all"] = "alphanumeric"
    """alphanumeric: 47 classes; all: 63 marks and accented letters more, for retrieval experiments."""
    shift: Annotated[int, Field(ge=0, le=6)] = 0
    """Random translation in training, in pixels; 0: no augmentation."""
    split: Annotated[int, Field(ge=0)] = 0
    """Seed of the split into train, validation, constraint and test families."""
    open_set: bool = True
    """Measure retrieval on characters no version was trained on (query and gallery from disjoint typefaces)."""
    network: Annotated[Network | StagedNetwork, Field(discriminator="kind")] = Network()
    """The network that embeds and classifies."""


class DigitsTask(Section):
    """scikit-learn's 8x8 digits: mechanics only, half a second a run."""

    kind: Literal["digits"] = "digits"
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the training ids."""
    classes: Annotated[int, Field(ge=2, le=10)] = 10
    """The first so many digits."""
    shift: Annotated[int, Field(ge=0, le=2)] = 0
    """Random translation in training, in pixels; 0: no augmentation."""
    split: Annotated[int, Field(ge=0)] = 0
    """Seed of the split into train, validation, constraint and test ids."""
    network: Annotated[Network | StagedNetwork, Field(discriminator="kind")] = Network()
    """The network that embeds and classifies."""


class NamedLearner(Section):
    """A learner of another package, found by its entry point in the group `graceful.learners`; only the driver and
    workers need that package."""

    kind: str
    """Name of the entry point."""
    options: dict[str, Any] = Field(default={})
    """Keyword arguments of what the entry point names; a name it does not take is refused."""


Learner = Annotated[NamedLearner | None, Field(exclude_if=lambda learner: learner is None)]


class ImageFolderTask(Section):
    """Ordinary images in one folder per class: `root/<class>/<image>`, or `root/<split>/<class>/<image>`."""

    kind: Literal["image_folder"] = "image_folder"
    root: str
    """A local folder or s3://bucket/prefix. Without split folders, ids are split by their hash."""
    follow_links: Annotated[bool, Field(exclude_if=lambda follow: not follow)] = False
    """Take what links in a local root lead to outside it; false: such a link is refused."""
    size: Annotated[int, Field(ge=8, le=1024)] | None = 64
    """Images are resized to fit and centre-cropped to size x size; None: to the size that the checkpoint of `network`
    was trained with, which is the default where `network` is of another package."""
    channels: Literal[1, 3] = 3
    """1: grey; 3: colour."""
    decode: Annotated[Literal["full", "reduced"], Field(exclude_if=lambda decode: decode == "full")] = "full"
    """full: decode every pixel, then scale; reduced: decode JPEGs at a half, a quarter or an eighth where they are at
    least six times as large as `size`, several times faster and with slightly other pixels."""
    share: Annotated[float, Field(gt=0.0, le=1.0, exclude_if=lambda share: share == 1.0)] = 1.0
    """Share of the training images this version may learn from, in a fixed order: growing data."""
    shift: Annotated[int, Field(ge=0)] = 0
    """Random translation in training, in pixels, less than `size`; 0: none."""
    flip: bool = False
    """Random horizontal flips in training."""
    classes: tuple[str, ...] | None = None
    """Class folders to use; None: all, sorted by name."""
    on_bad_sample: Annotated[Literal["refuse", "skip"], Field(exclude_if=lambda how: how == "refuse")] = "refuse"
    """refuse: an image that cannot be read ends the run with its name; skip: every image is decoded once on a node
    before training, those that cannot be read are left out, and the report says how many."""
    network: Annotated[Network | StagedNetwork | PretrainedImages, Field(discriminator="kind")] = Network(size="s2")
    """The network that embeds and classifies."""
    learner: Learner = None
    """Makes network, batches and loss in place of `network`, `shift` and `flip`; None: a classifier."""

    @model_validator(mode="before")
    @classmethod
    def _size_of_checkpoint(cls, values: Any) -> Any:
        return {"size": None, **values} if is_pretrained(values) else values

    @field_validator("root")
    @classmethod
    def _folder_or_bucket(cls, root: str) -> str:
        if addresses.has_other_scheme(root):
            raise ValueError(f"must be a local folder or s3://bucket/prefix, got {root}")
        return addresses.in_document(root) if addresses.is_remote(root) else root

    @model_validator(mode="after")
    def _fitting(self) -> ImageFolderTask:
        require_image_network(self.network, size=self.size)
        return self

    @model_validator(mode="after")
    def _visible(self) -> ImageFolderTask:
        if self.size is not None and self.shift >= self.size:
            raise ValueError(
                f"shift must be less than size = {self.size} pixels, got {self.shift}; write {self.size // 8}"
            )
        return self

    @model_validator(mode="after")
    def _augmented_by_one(self) -> ImageFolderTask:
        if self.learner is not None and (self.shift or self.flip):
            raise ValueError(
                "shift and flip belong to the task's own transform, which learner replaces; leave them out"
            )
        return self


BUNDLE = re.compile(r"s3://[^/]+/(?:.+/)?code/([0-9a-f]{64})\.zip")
"""Address of a packed folder, named by its SHA-256: what a submission puts in place of a folder."""


class PythonTask(Section):
    """A task of your own: a Python file that defines `task(**options)`, alone or in a folder with what it imports."""

    kind: Literal["python"] = "python"
    file: str
    """Path, relative to the spec, of the file, or of a folder that holds task.py and modules beside it."""
    options: dict[str, Any] = Field(default={})
    """Keyword arguments of `task`; a name it does not take is refused. Relative paths among them are the working
    directory's, not the spec's: graceful cannot know which texts are paths."""
    learner: Learner = None
    """Makes network, batches and loss of the file's data; None: the file does."""

    @field_validator("file")
    @classmethod
    def _path_or_bundle(cls, file: str) -> str:
        clean = addresses.in_document(file) if addresses.is_remote(file) else file
        if "://" in clean and not BUNDLE.fullmatch(clean):
            raise ValueError(f"must be a path, or s3://bucket/prefix/code/<SHA-256>.zip, got {file}")
        return clean


Task = Annotated[
    GlyphsTask | DigitsTask | ImageFolderTask | TableTask | ShardsTask | PythonTask, Field(discriminator="kind")
]
