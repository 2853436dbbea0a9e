"""The splits of an indexed table: which rows are in each, with which label. Written once on a node. Driver, workers.

    NAME-rows.npy    [n] uint32 or int64, positions in the table, in its order
    NAME-labels.npy  [n] int64, indices into the split's classes
    train-weights.npy  [n] float32, where a column has weights
    meta.json        for each split its classes, counts and digests; labels of the training rows

A version that learns from a larger share, or names other classes, has a division of its own of the same index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful import storage
from graceful.tasks.hashing import SPLITS, as_fractions, split_digest
from graceful.tasks.names import Names
from graceful.tasks.table import content, repeats
from graceful.tasks.table.index import Index
from graceful.tasks.table.index_build import FOLDED, KEYS, WEIGHTS
from graceful.tasks.table.index_build import SPLITS as NAMES
from graceful.tasks.table.source import BATCH
from graceful.tasks.table.stored import Stored, Writer, opened

FORMAT = 2
_MEMBERS, _LEARNED = "members", "learned"
"""Number of each row's split, and the same without rows whose label is not a class; needed while splits are found."""
_TRAIN = "train"
_NONE = len(NAMES)
"""Number of the split of rows that are in none."""
_OWN_CLASSES = ("query", "gallery")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One split on disk.

    Attributes:
        rows: [n] positions in the table.
        labels: [n] int64.
        weights: [n] float32 of the training rows, where a column has some.
        classes: Names of the labels.
        counts: Rows of each class.
        digest: As of `Samples`.
        ids_digest: As of `Names`.
        stray: A row whose label is none of the classes, and the label; None: there is none.
        repeats: Rows that embed the same as a training row.
        alike: Rows that differ from a training row in spelling alone.
    """

    rows: NDArray[Any]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32] | None
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    digest: str
    ids_digest: str
    stray: tuple[int, str] | None
    repeats: int
    alike: int

    def __len__(self) -> int:
        return len(self.labels)


class Division:
    """The splits of a table.

    Args:
        index: The index of the table.

    Attributes:
        index: The index of the table.
        folder: Where the arrays lie.
        known: Labels of all training rows, whatever share is learned from, sorted.
        names: Splits that there are.
    """

    def __init__(self, index: Index) -> None:
        section = index.section
        identity = {
            "format": FORMAT,
            "index": index.folder.name,
            "share": section.share,
            "split": section.split,
            "classes": section.classes,
        }
        self.index = index
        self.folder = index.folder.with_name(storage.sha256_json(identity))
        self._meta = opened(self.folder, lambda part: _Build(index, part).run())
        self._parts: dict[str, Part] = {}
        self.known: tuple[str, ...] = tuple(self._meta["known"])
        self.names: tuple[str, ...] = tuple(self._meta["parts"])

    def part(self, name: str) -> Part:
        """Return one split; every call returns the same arrays.

        Raises:
            KeyError: There is none of that name.
        """
        if name not in self._parts:
            self._parts[name] = self._opened(name)
        return self._parts[name]

    def _opened(self, name: str) -> Part:
        meta = self._meta["parts"][name]
        weighted = name == _TRAIN and self.index.section.columns.weight is not None
        return Part(
            rows=Stored(self.folder / f"{name}-rows.npy").mapped(),
            labels=Stored(self.folder / f"{name}-labels.npy").mapped(),
            weights=Stored(self.folder / f"{_TRAIN}-{WEIGHTS}.npy").mapped() if weighted else None,
            classes=tuple(meta["classes"]),
            counts=tuple(meta["counts"]),
            digest=meta["digest"],
            ids_digest=meta["ids"],
            stray=None if meta["stray"] is None else tuple(meta["stray"]),
            repeats=meta["repeats"],
            alike=meta["alike"],
        )

    def ids(self, name: str) -> Names:
        """Return the ids of a split, which are read from the table on first use."""
        part = self.part(name)
        read = partial(_read, self.index.ids, part.rows)
        data = f"{self.index.folder.name}, {self.index.section.split}"  # shares and classes only leave rows out
        return Names(len(part), read, digest=part.ids_digest, source=(data, name))

    def groups(self, name: str) -> Names:
        """Return what the rows of a split belong to, read likewise."""
        part = self.part(name)
        return Names(len(part), partial(_read, self.index.groups, part.rows))


def _read(column: Any, rows: NDArray[Any], positions: NDArray[np.int64]) -> NDArray[np.str_]:
    names: NDArray[np.str_] = column(rows[positions].astype(np.int64))
    return names


class _Build:
    """One build of a division.

    Args:
        index: The index of the table.
        folder: Where the arrays go.
    """

    def __init__(self, index: Index, folder: Path) -> None:
        self._index, self._section, self._folder = index, index.section, folder
        self._counts = np.zeros((_NONE + 1, len(index.labels)), dtype=np.int64)
        """Rows of each split and label, as learned from."""
        self._training = np.zeros(len(index.labels), dtype=np.int64)
        """Training rows of each label, of all of them."""

    def run(self) -> dict[str, Any]:
        """Write the arrays and return what to record."""
        self._write_members()
        known = sorted(label for label, count in zip(self._index.labels, self._training, strict=True) if count)
        classes = {name: self._classes(name, known) for name in NAMES}
        strays = self._write_rows(classes)
        if self._section.columns.weight is not None:
            self._write_weights()
        repeated = self._repeats(KEYS)
        alike = self._repeats(FOLDED) if self._section.columns.text is not None else repeated
        parts = {}
        for number, name in enumerate(NAMES):
            if name in _OWN_CLASSES and name not in self._index.splits:
                continue
            both = repeated.get(number, 0), alike.get(number, 0)
            parts[name] = {
                **self._described(name, classes[name]),
                "stray": strays.get(number),
                "repeats": both[0],
                "alike": both[1] - both[0],
            }
        for name in (_MEMBERS, _LEARNED):
            (self._folder / f"{name}.npy").unlink()
        return {"known": known, "parts": parts}

    def _classes(self, name: str, known: Sequence[str]) -> tuple[str, ...]:
        if name in _OWN_CLASSES:
            counts = self._counts[NAMES.index(name)]
            return tuple(sorted(label for label, count in zip(self._index.labels, counts, strict=True) if count))
        return self._section.classes or tuple(known)

    # --- who is in which split ----------------------------------------------------------------------------------------

    def _write_members(self) -> None:
        """Write the number of the split of each row, and count."""
        index, labels = self._index, len(self._index.labels)
        columns = [index.stored(name).blocks(BATCH) for name in ("splits", "usable", "labels")]
        start = 0
        with Writer(self._folder / f"{_MEMBERS}.npy", "u1", len(index)) as writer:
            for splits, usable, codes in zip(*columns, strict=True):
                stop = start + len(splits)
                members = np.where(usable, self._members(splits, start, stop), _NONE).astype(np.uint8)
                self._training += np.bincount(codes[members == NAMES.index(_TRAIN)], minlength=labels)
                members = self._shared(members, start, stop)
                kept = members < _NONE
                np.add.at(self._counts, (members[kept], codes[kept]), 1)
                writer.append(members)
                start = stop

    def _members(self, splits: NDArray[np.int8], start: int, stop: int) -> NDArray[np.intp]:
        """Return the split of neighbouring rows, of the training rows all.

        Files without splits are split by a hash of groups. Where there are splits, a validation or constraint split
        that is missing gets a tenth of the training rows each.
        """
        seed = 2 * self._section.split
        if not self._index.splits:
            (hashes,) = self._index.group_hashes(start, stop, salts=[seed])
            return _by_range(as_fractions(hashes), SPLITS)
        members = np.where(splits < 0, _NONE, splits).astype(np.intp)
        missing = [name for name in ("validation", "constraint") if name not in self._index.splits]
        if missing:
            ranges = {"train": (0.0, 1.0 - 0.1 * len(missing))}
            for place, name in enumerate(missing):
                low = 1.0 - 0.1 * (len(missing) - place)
                ranges[name] = (low, low + 0.1)
            (hashes,) = self._index.group_hashes(start, stop, salts=[seed])
            drawn = _by_range(as_fractions(hashes), ranges)
            members = np.where(members == NAMES.index(_TRAIN), drawn, members)
        return members

    def _shared(self, members: NDArray[np.uint8], start: int, stop: int) -> NDArray[np.uint8]:
        """Take the training rows out that are not of the share that is learned from."""
        if self._section.share >= 1.0:
            return members
        (hashes,) = self._index.group_hashes(start, stop, salts=[2 * self._section.split + 1])
        outside = (members == NAMES.index(_TRAIN)) & (as_fractions(hashes) >= self._section.share)
        return np.where(outside, _NONE, members).astype(np.uint8)

    def _write_rows(self, classes: dict[str, tuple[str, ...]]) -> dict[int, tuple[int, str]]:
        """Write rows and labels of each split; return the first row of each with a label that is not a class."""
        index = self._index
        lookups = [_lookup(classes[name], index.labels) for name in NAMES]
        strays: dict[int, tuple[int, str]] = {}
        columns = [Stored(self._folder / f"{_MEMBERS}.npy").blocks(BATCH), index.stored("labels").blocks(BATCH)]
        start = 0
        with ExitStack() as stack:
            learned = stack.enter_context(Writer(self._folder / f"{_LEARNED}.npy", "u1", len(index)))
            writers = [self._writers(stack, number, lookup) for number, lookup in enumerate(lookups)]
            for members, codes in zip(*columns, strict=True):
                for number in np.unique(members[members < _NONE]).tolist():
                    chosen = np.flatnonzero(members == number)
                    labels = lookups[number][codes[chosen]]
                    stray = chosen[labels < 0]
                    if len(stray) and number not in strays and self._section.classes is None:
                        strays[number] = (start + int(stray[0]), index.labels[codes[stray[0]]])
                    kept = labels >= 0
                    for writer, values in zip(writers[number], (start + chosen[kept], labels[kept]), strict=True):
                        writer.append(values)
                    members[chosen[~kept]] = _NONE
                learned.append(members)
                start += len(members)
        return strays

    def _writers(self, stack: ExitStack, number: int, lookup: NDArray[np.int64]) -> list[Writer]:
        """Return what writes rows and labels of a split."""
        count = int(self._counts[number][lookup >= 0].sum())
        kinds = {"rows": "<u4" if len(self._index) < 2**32 else "<i8", "labels": "<i8"}
        return [
            stack.enter_context(Writer(self._folder / f"{NAMES[number]}-{what}.npy", kind, count))
            for what, kind in kinds.items()
        ]

    def _write_weights(self) -> None:
        rows, weights = Stored(self._folder / f"{_TRAIN}-rows.npy"), self._index.stored(WEIGHTS).mapped()
        with Writer(self._folder / f"{_TRAIN}-{WEIGHTS}.npy", "<f4", len(rows.mapped())) as writer:
            for block in rows.blocks(BATCH):
                writer.append(weights[block])

    def _repeats(self, keys: str) -> dict[int, int]:
        return repeats.also_in(
            self._index.stored(keys),
            len(self._index),
            splits=Stored(self._folder / f"{_LEARNED}.npy"),
            train=NAMES.index(_TRAIN),
            others=[NAMES.index(name) for name in ("validation", "constraint", "test")],
        )

    # --- what is in a split -------------------------------------------------------------------------------------------

    def _described(self, name: str, classes: tuple[str, ...]) -> dict[str, Any]:
        """Return classes, counts and digests of a split whose rows are written."""
        rows, labels = (Stored(self._folder / f"{name}-{what}.npy").mapped() for what in ("rows", "labels"))
        ids = self._ids_digest(rows)
        position = {label: place for place, label in enumerate(self._index.labels)}
        counts = self._counts[NAMES.index(name)]
        return {
            "classes": list(classes),
            "counts": [int(counts[position[label]]) if label in position else 0 for label in classes],
            "digest": split_digest(np.zeros(0, dtype=np.str_), labels, classes, [ids, self._content(rows)]),
            "ids": ids,
        }

    def _ids_digest(self, rows: NDArray[Any]) -> str:
        """Return `names.ids_digest` of the ids of some rows."""
        width = max((content.longest(ids) for ids in self._ids(rows)), default=1)
        digest = hashlib.sha256(f"{np.dtype(f'S{width}').str}{(len(rows),)}".encode())
        for ids in self._ids(rows):
            digest.update(content.fixed_width(ids, width).data)
        return digest.hexdigest()

    def _ids(self, rows: NDArray[Any]) -> Iterator[Any]:
        """Yield the ids of some rows as Arrow strings, block by block."""
        for start in range(0, len(rows), BATCH):
            yield self._index.id_values(rows[start : start + BATCH].astype(np.int64))

    def _content(self, rows: NDArray[Any]) -> str:
        """Return a digest of all columns of some rows, because a predecessor may read others than this version."""
        table = self._index.table
        digest = content.Content(table.rows.column_names)
        for start in range(0, len(rows), table.step):
            positions = rows[start : start + table.step].astype(np.int64)
            digest.update(lambda name, positions=positions: table.taken(name, positions))
        return digest.hexdigest()


def _lookup(classes: Sequence[str], labels: Sequence[str]) -> NDArray[np.int64]:
    """Return the position of each label in the classes, -1 where it is none."""
    position = {name: place for place, name in enumerate(classes)}
    return np.asarray([position.get(label, -1) for label in labels], dtype=np.int64)


def _by_range(fractions: NDArray[np.float64], ranges: Mapping[str, tuple[float, float]]) -> NDArray[np.intp]:
    """Return the number of the split in whose range each fraction is."""
    members = np.full(len(fractions), _NONE, dtype=np.intp)
    for name, (low, high) in ranges.items():
        members[(fractions >= low) & (fractions < high)] = NAMES.index(name)
    return members
