"""Shards: tar files of samples, as WebDataset writes them. Runs in every process."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from graceful.sections import Count, Section
from graceful.spec.data_files import FilesBySplit, require_splits
from graceful.spec.networks import Network, Perceptron, PretrainedImages, is_pretrained, require_fitting
from graceful.spec.table import WordDropout

_FIELD = re.compile(r"[^\s:/.][^\s:/]*(?::.+)?")


class Members(Section):
    """Which member of a sample holds what.

    A sample is the files of a shard whose names differ only after the first dot: `000123.jpg`, `000123.cls`. A field is
    such an ending, `cls`, or an ending and a key of the JSON object in that member, `json:category` or
    `json:meta.category`.
    """

    image: tuple[str, ...] = ()
    """Endings of an image to embed; the first one that a sample has is read."""
    text: str | None = None
    """Field of a text to embed."""
    pair: str | None = None
    """Field of a second text that is read with the first; None: there is none."""
    features: tuple[str, ...] = ()
    """Fields of numbers to embed."""
    label: str = "cls"
    """Field of the name or number of the class."""
    id: str | None = None
    """Field of a name that never changes for a sample; None: the members' name without its ending."""
    group: str | None = None
    """Field of what belongs together: groups are never split, and intervals are drawn over them; None: each sample
    alone."""
    weight: str | None = None
    """Field of what a training sample counts in the task's loss, at least 0; None: all the same."""
    split: str | None = None
    """Field of the split a sample is in: train, validation, constraint, test, query or gallery; None: by file, or by
    hash."""

    @field_validator("image", "features", mode="before")
    @classmethod
    def _listed(cls, names: Any) -> Any:
        return (names,) if isinstance(names, str) else names

    @field_validator("image", "text", "pair", "features", "label", "id", "group", "weight", "split")
    @classmethod
    def _fields(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for name in (value,) if isinstance(value, str) else value or ():
            if not _FIELD.fullmatch(name):
                raise ValueError(f"must be an ending such as cls, or json:KEY, got {name!r}")
        return value

    @model_validator(mode="after")
    def _one_input(self) -> Members:
        if sum(map(bool, (self.image, self.text, self.features))) != 1:
            raise ValueError("must name one of image, text and features; write members: {image: jpg}")
        if any(":" in ending for ending in self.image):
            raise ValueError(f"image must be endings such as jpg, got {self.image[0]!r}")
        if self.pair is not None and self.text is None:
            raise ValueError("pair needs text; name the first text as well")
        return self


class AutoShuffle(Section):
    """`blocks` where a shard is in a bucket, `full` where all are local."""

    kind: Literal["auto"] = "auto"


class FullShuffle(Section):
    """Each epoch is one permutation of all training samples; every sample is read from anywhere."""

    kind: Literal["full"] = "full"


class BlockShuffle(Section):
    """Each epoch shuffles runs of neighbouring samples, then the samples of every `window` runs.

    A bucket is asked for whole runs, once an epoch. Two samples of a batch come from the same run with a probability of
    about 1/window.
    """

    kind: Literal["blocks"] = "blocks"
    run: Count | None = None
    """Neighbouring training samples of a shard that are read together; None: as many as take 16 MiB of the shards."""
    window: Count = 64
    """Runs whose samples are mixed; the local cache should hold twice as many."""


class ShardsTask(Section):
    """Samples in tar files, as WebDataset writes them; indexed once, then read by ranges of bytes."""

    kind: Literal["shards"] = "shards"
    files: FilesBySplit
    """Tar files, folders of them, or patterns such as `data/train-{000..099}.tar` and `data/*.tar`, relative to the
    spec, or s3:// addresses; or these for each split."""
    members: Members
    """Which member of a sample holds what."""
    size: Annotated[int, Field(ge=8, le=1024)] | None = 64
    """Images are resized to fit and centre-cropped to size x size; None: to the size that the checkpoint of `network`
    was trained with, which is the default where `network` is of another package."""
    channels: Literal[1, 3] = 3
    """1: grey; 3: colour."""
    decode: Literal["full", "reduced"] = "full"
    """full: decode every pixel, then scale; reduced: decode large JPEGs at a half, a quarter or an eighth."""
    shift: Annotated[int, Field(ge=0)] = 0
    """Random translation of images in training, in pixels, less than `size`; 0: none."""
    flip: bool = False
    """Random horizontal flips of images in training."""
    augment: WordDropout | None = None
    """How texts are changed in training; None: they are read as they are."""
    classes: tuple[str, ...] | None = None
    """Classes to learn, in this order; None: all labels of the training samples, sorted."""
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the training samples (of their groups) this version may learn from, in a fixed order: growing data."""
    split: Annotated[int, Field(ge=0)] = 0
    """Seed of the split by hash."""
    on_bad_sample: Literal["refuse", "skip"] = "refuse"
    """refuse: a sample without input, label or id, or an image that cannot be read, ends the run with its shard and
    name; skip: such samples are left out, and the report says how many. To find them, skip decodes each image once."""
    shuffle: Annotated[AutoShuffle | BlockShuffle | FullShuffle, Field(discriminator="kind")] = AutoShuffle()
    """How the training samples are shuffled."""
    network: Annotated[Network | PretrainedImages | Perceptron, Field(discriminator="kind")] = Network(size="s2")
    """The network that embeds and classifies."""

    @model_validator(mode="before")
    @classmethod
    def _size_of_checkpoint(cls, values: Any) -> Any:
        return {"size": None, **values} if is_pretrained(values) else values

    @model_validator(mode="after")
    def _consistent(self) -> ShardsTask:
        require_splits(self.files, key="members.split", named=self.members.split is not None, what="shard")
        require_fitting(
            self.network,
            section="members",
            embedded=[key for key in ("text", "image", "features") if getattr(self.members, key)],
            size=self.size,
            shift=self.shift,
            flip=self.flip,
            augments_text=self.augment is not None,
        )
        return self
