"""The splits of shards, as a section divides the samples; kept beside the index. Driver and workers."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graceful import storage
from graceful.errors import DataError, SpecError
from graceful.files import guarded
from graceful.spec.shards import ShardsTask
from graceful.tasks.base import Split
from graceful.tasks.hashing import SPLITS as HASH_SPLITS
from graceful.tasks.names import Names, ids_digest
from graceful.tasks.shards.index import SPLITS, Index, chunks
from graceful.tasks.shards.part import load_array, made_once, read_facts
from graceful.tasks.table import repeats
from graceful.tasks.table.stored import Stored

_SPLIT, _CLASSES, _REPEATED = "split.json", "classes.json", "repeated.json"
_HELD_OUT = ("validation", "constraint", "test")


@dataclass(frozen=True, kw_only=True)
class SplitArrays:
    """One split, memory-mapped.

    Attributes:
        chosen: [n] which samples of the index.
        labels: [n] index into `classes`.
        weights: [n] of training samples, where a field has them.
        classes: Names of the labels.
        digest: SHA-256 over ids, labels, classes and content.
        ids: The ids.
        groups: What the samples belong to.
    """

    chosen: NDArray[np.int64]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32] | None
    classes: tuple[str, ...]
    digest: str
    ids: Names
    groups: Names


class Division:
    """The samples of an index as a section divides them.

    Args:
        index: The index of the shards.
        section: Says which samples are in which split, which are trained on, and what the classes are.
    """

    def __init__(self, index: Index, section: ShardsTask) -> None:
        self.index, self._section = index, section

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Return the labels of the training samples, sorted, or those that the section names.

        Raises:
            SpecError: The section names one that no training sample has.
        """
        known = self._known_classes()
        for name in self._section.classes or ():
            if name not in known:
                raise SpecError(
                    f"task.classes: no training sample has the label {name!r}; it has {', '.join(known[:10])}"
                )
        return self._section.classes or tuple(known)

    def _known_classes(self) -> list[str]:
        """Return the labels of all training samples, sorted; they are found once and kept beside the index."""
        index = self.index
        folder = index.folder / f"classes-{self._section.split}"

        def make(target: Path) -> None:
            labels, members = index.array("labels"), self._members("train", share=1.0)
            seen = np.zeros(len(index.labels), dtype=np.bool_)
            for part in chunks(len(index)):
                seen[labels[part][members[part]]] = True
            storage.write_json(target / _CLASSES, {"classes": np.asarray(index.labels)[seen].tolist()})

        made_once(folder, make)
        return list(read_facts(folder / _CLASSES)["classes"])

    def split(self, split: Split) -> SplitArrays:
        """Open a split.

        Raises:
            DataError: An empty split, a class without a training sample, a class that only other splits have.
            KeyError: query or gallery, where the shards have none.
        """
        folder = self._folder(split)
        facts, chosen = read_facts(folder / _SPLIT), load_array(folder / "chosen.npy")
        return SplitArrays(
            chosen=chosen,
            labels=load_array(folder / "labels.npy"),
            weights=load_array(folder / "weights.npy") if (folder / "weights.npy").exists() else None,
            classes=tuple(facts["classes"]),
            digest=facts["digest"],
            ids=self._names(self.index.array("ids"), chosen, split, digest=facts["ids"]),
            groups=self._names(self.index.groups, chosen, split),
        )

    def repeated(self) -> dict[str, tuple[int, int]]:
        """Return how many samples of each held-out split embed the same as a training sample, and how many it has."""
        index = self.index
        folder = index.folder / f"repeated-{self._section.split}"

        def make(target: Path) -> None:
            splits = np.full(len(index), -1, dtype=np.int8)
            for split in ("train", *_HELD_OUT):
                with suppress(DataError):  # a split that the shards lack
                    splits[self._members(split, share=1.0)] = SPLITS.index(split)
            np.save(target / "splits.npy", splits)
            counts = repeats.also_in(
                Stored(index.folder / "inputs.npy"),
                len(index),
                splits=Stored(target / "splits.npy"),
                train=SPLITS.index("train"),
                others=[SPLITS.index(split) for split in _HELD_OUT],
            )
            totals = np.bincount(splits[splits >= 0], minlength=len(SPLITS)).tolist()
            named = {SPLITS[code]: [count, totals[code]] for code, count in counts.items()}
            storage.write_json(target / _REPEATED, named)

        made_once(folder, make)
        return {split: (counts[0], counts[1]) for split, counts in read_facts(folder / _REPEATED).items()}

    def _names(
        self, names: NDArray[np.str_], chosen: NDArray[np.int64], split: Split, *, digest: str | None = None
    ) -> Names:
        """Return the names of the samples of a split, which stay in the file of the index."""
        source = (f"{self.index.folder}, {self._section.split}", split)
        return Names(len(chosen), lambda positions: np.asarray(names[chosen[positions]]), digest=digest, source=source)

    def _members(self, split: str, *, share: float) -> NDArray[np.bool_]:
        """Return which samples belong to a split, [N]; of the training samples, a share."""
        index, section = self.index, self._section
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

    def _folder(self, split: Split) -> Path:
        """Return the folder with the arrays of a split, which are made once and kept beside the index."""
        section = self._section
        open_set = split in ("query", "gallery")
        if open_set:
            self._members(split, share=1.0)  # KeyError where there is none
        wanted = None if open_set or section.classes is None else list(section.classes)
        key = storage.sha256_json([split, section.share, section.split, wanted])
        folder = self.index.folder / f"split-{key[:32]}"
        made_once(folder, lambda target: self._write(split, target))
        return folder

    def _write(self, split: Split, folder: Path) -> None:
        index, section = self.index, self._section
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
        ids, content = self.index.array("ids"), self.index.array("content")
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


def _train_share(split: str, named: set[str]) -> tuple[float, float]:
    """Return the range of the training samples of a split; a missing validation or constraint split gets a tenth."""
    missing = [name for name in ("validation", "constraint") if name not in named]
    if split == "train":
        return (0.0, 1.0 - 0.1 * len(missing))
    start = 1.0 - 0.1 * (len(missing) - missing.index(split))
    return (start, start + 0.1)
