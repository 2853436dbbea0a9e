"""The task of the `shards` section: samples of tar files by range, classes by name. Driver and workers."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from graceful import storage
from graceful.errors import DataError, SpecError
from graceful.files import guarded
from graceful.learners import Batch
from graceful.learners.features import FeatureLearner
from graceful.learners.images import ImageLearner
from graceful.learners.text import TextLearner
from graceful.spec.networks import Perceptron, Pretrained, TransformersNetwork
from graceful.spec.shards import AutoShuffle, BlockShuffle, ShardsTask
from graceful.spec.table import Columns
from graceful.spec.tasks import ImageFolderTask
from graceful.tasks.base import Samples, Split
from graceful.tasks.hashing import SPLITS as HASH_SPLITS
from graceful.tasks.image_folder import ImageFolder
from graceful.tasks.names import Names, ids_digest
from graceful.tasks.runs import Runs, cut
from graceful.tasks.shards.ahead import FetchAhead
from graceful.tasks.shards.files import RemoteShard, list_shards
from graceful.tasks.shards.index import SPLITS, Index, Roles, chunks, open_index
from graceful.tasks.shards.items import MemberReader, ShardRows, read_photos
from graceful.tasks.shards.part import Wanted, load_array, made_once, read_facts
from graceful.tasks.table import repeats
from graceful.tasks.table.stored import Stored
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
        self.classes = self._class_names()
        return self.classes

    def _class_names(self) -> tuple[str, ...]:
        known = self._known_classes()
        for name in self._section.classes or ():
            if name not in known:
                raise SpecError(
                    f"task.classes: no training sample has the label {name!r}; it has {', '.join(known[:10])}"
                )
        return self._section.classes or tuple(known)

    def _known_classes(self) -> list[str]:
        """Return the labels of all training samples, sorted; they are found once and kept beside the index."""
        index = self._index
        folder = index.folder / f"classes-{self._section.split}"

        def make(target: Path) -> None:
            labels, members = index.array("labels"), self._members("train", share=1.0)
            seen = np.zeros(len(index.labels), dtype=np.bool_)
            for part in chunks(len(index)):
                seen[labels[part][members[part]]] = True
            storage.write_json(target / _CLASSES, {"classes": np.asarray(index.labels)[seen].tolist()})

        made_once(folder, make)
        return list(read_facts(folder / _CLASSES)["classes"])

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of a report must know of the samples, one sentence each."""
        notes, index = [], self._index
        if index.first_flaw:
            bad = len(index) - int(np.count_nonzero(index.array("usable")))
            count = f"{bad} of {len(index)} samples"
            notes.append(f"{count} were left out, because they cannot be used; the first: {index.first_flaw}")
        repeated = [
            f"{count} of {total} {split} samples" for split, (count, total) in self._repeated().items() if count
        ]
        if repeated:
            notes.append(
                f"{', '.join(repeated)} embed the same as a training sample; task.members.group keeps samples together"
                " that belong together"
            )
        learner = None if self._images is not None else self.learner
        if isinstance(learner, TextLearner):
            notes += cut_note(learner, self.samples("train"), what="training samples")
        return tuple(notes)

    def _repeated(self) -> dict[str, tuple[int, int]]:
        """Return how many samples of each held-out split embed the same as a training sample, and how many it has."""
        index = self._index
        others = ("validation", "constraint", "test")
        folder = index.folder / f"repeated-{self._section.split}"

        def make(target: Path) -> None:
            splits = np.full(len(index), -1, dtype=np.int8)
            for split in ("train", *others):
                with suppress(DataError):  # a split that the shards lack
                    splits[self._members(split, share=1.0)] = SPLITS.index(split)
            np.save(target / "splits.npy", splits)
            counts = repeats.also_in(
                Stored(index.folder / "inputs.npy"),
                len(index),
                splits=Stored(target / "splits.npy"),
                train=SPLITS.index("train"),
                others=[SPLITS.index(split) for split in others],
            )
            totals = np.bincount(splits[splits >= 0], minlength=len(SPLITS)).tolist()
            named = {SPLITS[code]: [count, totals[code]] for code, count in counts.items()}
            storage.write_json(target / _REPEATED, named)

        made_once(folder, make)
        return {split: (counts[0], counts[1]) for split, counts in read_facts(folder / _REPEATED).items()}

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
        folder = self._split_folder(split)
        facts, chosen = read_facts(folder / _SPLIT), load_array(folder / "chosen.npy")
        runs = self._runs(chosen) if split == "train" else None
        return Samples(
            ids=self._names(self._index.array("ids"), chosen, split, digest=facts["ids"]),
            labels=load_array(folder / "labels.npy"),
            classes=tuple(facts["classes"]),
            groups=self._names(self._index.groups, chosen, split),
            read=partial(self._read, chosen),
            weights=load_array(folder / "weights.npy") if (folder / "weights.npy").exists() else None,
            digest=facts["digest"] if runs is None else _ordered(facts["digest"], runs),
            runs=runs,
        )

    def _runs(self, chosen: NDArray[np.int64]) -> Runs | None:
        """Return the runs in which training reads its samples; None where it may read them in any order."""
        shuffle = self._section.shuffle
        if isinstance(shuffle, AutoShuffle) and any(isinstance(shard, RemoteShard) for shard in self._index.shards):
            shuffle = BlockShuffle()
        if not isinstance(shuffle, BlockShuffle):
            return None
        bounds = np.searchsorted(chosen, self._index.starts).astype(np.int64)
        size = sum(shard.size for shard in self._index.shards) / len(chosen)
        starts = cut(bounds, run=shuffle.run or max(1, round(RUN_BYTES / size)))
        return Runs(starts=starts, window=shuffle.window, fetch_ahead=FetchAhead(self._index, chosen, starts))

    def _names(
        self, names: NDArray[np.str_], chosen: NDArray[np.int64], split: Split, *, digest: str | None = None
    ) -> Names:
        """Return the names of the samples of a split, which stay in the file of the index."""
        source = (f"{self._index.folder}, {self._section.split}", split)
        return Names(len(chosen), lambda positions: np.asarray(names[chosen[positions]]), digest=digest, source=source)

    def _read(self, chosen: NDArray[np.int64], positions: NDArray[np.int64]) -> Any:
        section, samples = self._section, np.asarray(chosen[positions])
        if self._images is not None:
            endings = tuple(ending.lower() for ending in section.members.image)
            return read_photos(self._reader, samples, endings=endings, frame=self._images.frame())
        return ShardRows(self._reader, samples, inputs=_inputs(section))

    @cached_property
    def _index(self) -> Index:
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
        return index

    @cached_property
    def _reader(self) -> MemberReader:
        return MemberReader(self._index)

    # --- splits -------------------------------------------------------------------------------------------------------

    def _members(self, split: str, *, share: float) -> NDArray[np.bool_]:
        """Return which samples belong to a split, [N]; of the training samples, a share."""
        index, section = self._index, self._section
        codes = index.array("splits")
        named = {SPLITS[code] for code in np.unique(codes).tolist() if code >= 0}
        low, high = 0.0, 1.0
        if not named:
            low, high = HASH_SPLITS[split]
        elif split != "train" and split in named:
            return np.asarray((codes == SPLITS.index(split)) & index.array("usable"))
        elif split in ("query", "gallery"):
            raise KeyError(split)
        elif split == "test" or "train" not in named:
            missing = split if "train" in named else "train"
            raise DataError(f"task.files: there are splits but no {missing} split; add one")
        else:
            low, high = _train_share(split, named)
        members = np.asarray(index.array("usable")).copy()
        if named:
            members &= codes == SPLITS.index("train")
        if (low, high) != (0.0, 1.0):
            numbers = index.fractions(2 * section.split)
            members &= (numbers >= low) & (numbers < high)
        if split == "train" and share < 1.0:
            members &= index.fractions(2 * section.split + 1) < share
        return members

    def _split_folder(self, split: Split) -> Path:
        """Return the folder with the arrays of a split, which are made once and kept beside the index."""
        section = self._section
        open_set = split in ("query", "gallery")
        if open_set:
            self._members(split, share=1.0)  # KeyError where there is none
        wanted = None if open_set or section.classes is None else list(section.classes)
        key = storage.sha256_json([split, section.share, section.split, wanted])
        folder = self._index.folder / f"split-{key[:32]}"
        made_once(folder, lambda target: self._write_split(split, target))
        return folder

    def _write_split(self, split: Split, folder: Path) -> None:
        index, section = self._index, self._section
        chosen = np.flatnonzero(self._members(split, share=section.share))
        codes = np.asarray(index.array("labels")[chosen])
        present = [index.labels[code] for code in np.unique(codes).tolist()]
        classes = tuple(present) if split in ("query", "gallery") else self.classes
        new_codes = np.full(len(index.labels) + 1, -1, dtype=np.int64)
        for position, name in enumerate(classes):
            if name in index.labels:
                new_codes[index.labels.index(name)] = position
        labels = new_codes[codes]
        if section.classes is None and (labels < 0).any():
            sample = int(chosen[np.flatnonzero(labels < 0)[0]])
            shard, _ = index.place(sample)
            name = index.labels[index.array("labels")[sample]]
            raise DataError(f"{shard.where}: no training sample has the class {name!r}; add some")
        chosen, labels = chosen[labels >= 0], labels[labels >= 0]
        self._require_samples(split, labels, classes)
        with guarded(folder, "write"):
            np.save(folder / "chosen.npy", chosen)
            np.save(folder / "labels.npy", labels)
            if section.members.weight is not None and split == "train":
                np.save(folder / "weights.npy", index.array("weights")[chosen])
        ids = ids_digest(self._names(index.array("ids"), chosen, split))
        document = {"classes": list(classes), "digest": self._digest(chosen, labels, classes), "ids": ids}
        storage.write_json(folder / _SPLIT, document)

    def _digest(self, chosen: NDArray[np.int64], labels: NDArray[np.int64], classes: tuple[str, ...]) -> str:
        """Return the SHA-256 over ids, labels, classes and content of samples."""
        ids, content = self._index.array("ids"), self._index.array("content")
        digest = sha256(json.dumps([list(classes), len(chosen)]).encode())
        for part in chunks(len(chosen)):
            digest.update("\0".join(ids[chosen[part]].tolist()).encode())
            digest.update(labels[part].astype("<i8").tobytes() + content[chosen[part]].tobytes())
        return digest.hexdigest()

    def _require_samples(self, split: Split, labels: NDArray[np.int64], classes: tuple[str, ...]) -> None:
        counts = np.bincount(labels, minlength=len(classes))
        if len(labels) == 0 or (split == "train" and not counts.all()):
            empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
            problem = f"no {split} sample" + (f" of class {empty[0]!r}" if empty else "")
            raise DataError(f"task.files: {problem} ({len(empty)} such classes); add samples, or raise task.share")


def _ordered(digest: str, runs: Runs) -> str:
    """Return the digest of samples whose order depends on runs: those of other shards are read in another one."""
    return storage.sha256_json([digest, sha256(runs.starts.astype("<i8").tobytes()).hexdigest(), runs.window])


def _train_share(split: str, named: set[str]) -> tuple[float, float]:
    """Return the range of the training samples of a split; a missing validation or constraint split gets a tenth."""
    missing = [name for name in ("validation", "constraint") if name not in named]
    if split == "train":
        return (0.0, 1.0 - 0.1 * len(missing))
    start = 1.0 - 0.1 * (len(missing) - missing.index(split))
    return (start, start + 0.1)


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
