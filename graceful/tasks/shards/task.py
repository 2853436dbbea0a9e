"""The task of the `shards` section: samples of tar files by range, classes by name. Driver and workers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property, partial
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from graceful import storage
from graceful.errors import DataError
from graceful.learners import Batch
from graceful.learners.features import FeatureLearner
from graceful.learners.images import ImageLearner
from graceful.learners.text import TextLearner
from graceful.spec.networks import Perceptron, Pretrained, TransformersNetwork
from graceful.spec.shards import AutoShuffle, BlockShuffle, ShardsTask
from graceful.spec.table import Columns
from graceful.spec.tasks import ImageFolderTask
from graceful.tasks.base import Samples, Split
from graceful.tasks.image_folder import ImageFolder
from graceful.tasks.runs import Runs, cut
from graceful.tasks.shards.ahead import FetchAhead
from graceful.tasks.shards.division import Division
from graceful.tasks.shards.files import RemoteShard, list_shards
from graceful.tasks.shards.index import Roles, open_index
from graceful.tasks.shards.items import MemberReader, ShardRows, read_photos
from graceful.tasks.shards.part import Wanted
from graceful.tasks.text_notes import cut_note

RUN_BYTES = 16 * 2**20
"""Bytes of a run by default: four blocks, so that few blocks are fetched for the ends of runs alone."""
_SPLIT, _CLASSES, _REPEATED = "split.json", "classes.json", "repeated.json"


class Shards:
    """The task of the `shards` section.

    Shards are opened on first need, so that a predecessor works where its training data is gone.

    Attributes:
        augments: Whether images are shifted or flipped, or words left out, in training.
        learner: Makes batches; a predecessor's is restored from the files of its version. A task of images with one of
            graceful's own networks has no such attribute.
    """

    def __init__(self, section: ShardsTask) -> None:
        self._section = section
        self.augments = section.shift > 0 or section.flip or section.augment is not None
        self._images = _image_task(section) if section.members.image else None
        if self._images is None:
            self.learner = _learner(section, self)
        elif isinstance(section.network, Pretrained):
            self.learner = self._images.learner

    learner: TextLearner | FeatureLearner | ImageLearner
    classes: tuple[str, ...]
    """Labels of the training samples, sorted, or those that the section names; read when first asked for."""

    def __getattr__(self, name: str) -> Any:
        if name != "classes":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        self.classes = self._division.classes
        return self.classes

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what a reader of a report must know of the samples, one sentence each."""
        notes, index = [], self._division.index
        if index.first_flaw:
            bad = len(index) - int(np.count_nonzero(index.array("usable")))
            count = f"{bad} of {len(index)} samples"
            notes.append(f"{count} were left out, because they cannot be used; the first: {index.first_flaw}")
        repeated = {split: numbers for split, numbers in self._division.repeated().items() if numbers[0]}
        if repeated:
            shares = [f"{count} of {total} {split} samples" for split, (count, total) in repeated.items()]
            notes.append(
                f"{', '.join(shares)} embed the same as a training sample; task.members.group keeps samples together"
                " that belong together"
            )
        learner = None if self._images is not None else self.learner
        if isinstance(learner, TextLearner):
            notes += cut_note(learner, self.samples("train"), what="training samples")
        return tuple(notes)

    def restored(self, assets: Mapping[str, Any]) -> Shards:
        """Return this task with the learner that has the assets of another version; this task stays as it is."""
        task = copy.copy(self)
        if self._images is None:
            task.learner = self.learner.restored(assets)
        else:
            task._images = self._images.restored(assets)
            task.learner = task._images.learner
        return task

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        """Build the section's network."""
        return self.learner.network(classes) if self._images is None else self._images.network(classes)

    def transform(self, items: Any, views: NDArray[np.uint64] | None) -> Batch:
        """As that of `image_folder`, or the learner's `collate`."""
        return self.learner.collate(items, views) if self._images is None else self._images.transform(items, views)

    def samples(self, split: Split) -> Samples:
        """Open a split; `read` returns a list of `Photo`, or `ShardRows`.

        Raises:
            DataError: An empty split, a class without a training sample, a class that only other splits have.
            KeyError: query or gallery, where the shards have none.
        """
        part = self._division.split(split)
        runs = self._runs(part.chosen) if split == "train" else None
        return Samples(
            ids=part.ids,
            labels=part.labels,
            classes=part.classes,
            groups=part.groups,
            read=partial(self._read, part.chosen),
            weights=part.weights,
            digest=part.digest if runs is None else _ordered(part.digest, runs),
            runs=runs,
        )

    def _runs(self, chosen: NDArray[np.int64]) -> Runs | None:
        """Return the runs in which training reads its samples; None where it may read them in any order."""
        shuffle, index = self._section.shuffle, self._division.index
        if isinstance(shuffle, AutoShuffle) and any(isinstance(shard, RemoteShard) for shard in index.shards):
            shuffle = BlockShuffle()
        if not isinstance(shuffle, BlockShuffle):
            return None
        bounds = np.searchsorted(chosen, index.starts).astype(np.int64)
        size = sum(shard.size for shard in index.shards) / len(chosen)
        starts = cut(bounds, run=shuffle.run or max(1, round(RUN_BYTES / size)))
        return Runs(starts=starts, window=shuffle.window, fetch_ahead=FetchAhead(index, chosen, starts))

    def _read(self, chosen: NDArray[np.int64], positions: NDArray[np.int64]) -> Any:
        section, samples = self._section, np.asarray(chosen[positions])
        if self._images is not None:
            endings = tuple(ending.lower() for ending in section.members.image)
            return read_photos(self._reader, samples, endings=endings, frame=self._images.frame())
        return ShardRows(self._reader, samples, inputs=_inputs(section))

    @cached_property
    def _division(self) -> Division:
        section, members = self._section, self._section.members
        names = [members.label]
        roles: dict[str, int] = {}
        for role in ("id", "group", "split"):
            field = getattr(members, role)
            if field is not None:
                roles[role] = len(names)
                names.append(field)
        wanted = Wanted(
            names=tuple(names),
            texts=tuple(filter(None, (members.text, members.pair))),
            numbers=members.features,
            weight=members.weight,
            images=tuple(ending.lower() for ending in members.image),
            decode=bool(members.image) and section.on_bad_sample == "skip",
        )
        files = section.files if isinstance(section.files, dict) else {"": section.files}
        index = open_index([(split, list_shards(part)) for split, part in files.items()], wanted, Roles(**roles))
        if index.first_flaw and section.on_bad_sample == "refuse":
            bad = len(index) - int(np.count_nonzero(index.array("usable")))
            more = f" (and {bad - 1} other samples)" if bad > 1 else ""
            raise DataError(f"{index.first_flaw}{more}; correct the shard, or write task.on_bad_sample: skip")
        return Division(index, section)

    @cached_property
    def _reader(self) -> MemberReader:
        return MemberReader(self._division.index)


def _ordered(digest: str, runs: Runs) -> str:
    """Return the digest of samples whose order depends on runs: those of other shards are read in another one."""
    return storage.sha256_json([digest, sha256(runs.starts.astype("<i8").tobytes()).hexdigest(), runs.window])


def _inputs(section: ShardsTask) -> list[str]:
    members = section.members
    return [name for name in (members.text, members.pair, *members.features) if name is not None]


def _image_task(section: ShardsTask) -> ImageFolder:
    """Return the image_folder task that has the network and the transform of these images; its root is not opened."""
    keys = ("size", "channels", "decode", "shift", "flip", "network")
    return ImageFolder(ImageFolderTask(root="shards", **{key: getattr(section, key) for key in keys}))


def _learner(section: ShardsTask, task: Shards) -> TextLearner | FeatureLearner:
    members, network = section.members, section.network
    columns = Columns(text=members.text, pair=members.pair, features=members.features)
    if isinstance(network, TransformersNetwork):
        return TextLearner(columns, network, augment=section.augment)
    assert isinstance(network, Perceptron)
    return FeatureLearner(columns, network, training=lambda: task.samples("train"))
