"""The index of all shards of a task, joined from those of the shards. Driver and workers.

    ids.npy       [N] str           of the samples, in the order of the shards
    groups.npy    [N] str           only where a field names them
    weights.npy   [N] float32       only where a field names them
    labels.npy    [N] int32         index into `labels` of index.json, sorted texts; -1 where there is none
    splits.npy    [N] int8          index into SPLITS; -1 where there is none
    usable.npy    [N] bool
    content.npy   [N, 12] uint8     digest of a sample's members
    offsets.npy, sizes.npy [N, m] int64, digests.npy [N, m, 12] uint8: of the member with the j-th ending
    hashes.npy    [N] uint64        of the ids
    inputs.npy    [N] uint64        of the members that are embedded
    index.json    labels, endings, first sample of each shard, the first sample that cannot be used

Everything is written once and memory-mapped, so that a process that opens it holds no text for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful import storage
from graceful.errors import DataError
from graceful.files import guarded
from graceful.tasks.hashing import fractions, hash_ids, splitmix64
from graceful.tasks.image_layout import split_of
from graceful.tasks.image_listing import printable
from graceful.tasks.shards.fields import ending_of
from graceful.tasks.shards.files import Shard
from graceful.tasks.shards.part import (
    DIGEST_BYTES,
    FORMAT,
    Part,
    Wanted,
    allocated,
    folder_of,
    load_array,
    made_once,
    open_part,
    read_facts,
    root,
)
from graceful.tasks.table import repeats
from graceful.tasks.table.stored import Stored

SPLITS = ("train", "validation", "constraint", "test", "query", "gallery")
CHUNK = 2**18
"""Samples that are worked on together."""
THREADS = 8
"""Shards that are walked at the same time."""
INDEX = "index.json"


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Which of the names that a part has are what: positions in `Wanted.names`; None: there is no such field."""

    label: int = 0
    id: int | None = None
    group: int | None = None
    split: int | None = None


@dataclass(frozen=True, kw_only=True)
class Index:
    """All samples of a task, opened; arrays as in the files.

    Attributes:
        folder: Where the files are.
        shards: The shards.
        starts: [S + 1] first sample of each shard, and the number of samples.
        labels: Names of the labels that occur, sorted.
        endings: The endings of the members.
        first_flaw: Which sample cannot be used, and why; empty where all can be.
    """

    folder: Path
    shards: tuple[Shard, ...]
    starts: NDArray[np.int64]
    labels: tuple[str, ...]
    endings: tuple[str, ...]
    first_flaw: str

    def __len__(self) -> int:
        return int(self.starts[-1])

    def array(self, name: str) -> NDArray[Any]:
        """Return one of the arrays, memory-mapped."""
        return load_array(self.folder / f"{name}.npy")

    def derived(self, name: str, dtype: Any, compute: Callable[[slice], NDArray[Any]]) -> NDArray[Any]:
        """Return an array [N] that follows from the others; it is computed once, some samples at a time, and kept."""
        folder = self.folder / name

        def make(target: Path) -> None:
            column = allocated(target / "values.npy", dtype, (len(self),))
            for part in chunks(len(self)):
                column[part] = compute(part)
            column.flush()

        made_once(folder, make)
        return load_array(folder / "values.npy")

    @property
    def groups(self) -> NDArray[np.str_]:
        """Return what belongs together, [N]: the ids, where no field names it."""
        return self.array("groups" if (self.folder / "groups.npy").exists() else "ids")

    def fractions(self, salt: int) -> NDArray[np.float64]:
        """Return the numbers in [0, 1) of the groups, [N], by which splits and shares are made."""
        groups = self.groups
        return self.derived(f"fractions-{salt}", np.float64, lambda part: fractions(groups[part], salt=salt))

    def place(self, sample: int) -> tuple[Shard, int]:
        """Return the shard of a sample and its number there."""
        number = int(np.searchsorted(self.starts, sample, side="right")) - 1
        return self.shards[number], sample - int(self.starts[number])


def chunks(count: int) -> Iterator[slice]:
    """Yield slices of `CHUNK` samples."""
    for start in range(0, count, CHUNK):
        yield slice(start, min(start + CHUNK, count))


def open_index(parts: Sequence[tuple[str, Sequence[Shard]]], wanted: Wanted, roles: Roles) -> Index:
    """Return the index of shards; what is missing of it is made.

    Args:
        parts: Split, or empty where the files name none, and its shards.
        wanted: What is read of each sample.
        roles: What its names are.

    Raises:
        DataError: A shard is damaged, two samples have one id, or a split has an unknown name.
        StorageError: A bucket cannot be reached, or the index cannot be written.
    """
    shards = tuple(shard for _, group in parts for shard in group)
    splits = [split for split, group in parts for _ in group]
    names = [folder_of(shard, wanted).name for shard in shards]
    folder = root() / "sets" / storage.sha256_json([FORMAT, names, splits, asdict(roles)])
    made_once(folder, lambda target: _Joining(shards, splits, wanted, roles).write(target))
    facts = read_facts(folder / INDEX)
    return Index(
        folder=folder,
        shards=shards,
        starts=np.asarray(facts["starts"], dtype=np.int64),
        labels=tuple(facts["labels"]),
        endings=tuple(facts["endings"]),
        first_flaw=facts["first_flaw"],
    )


class _Joining:
    """Joins the indices of shards, one after the other, into arrays on disk."""

    def __init__(self, shards: Sequence[Shard], splits: Sequence[str], wanted: Wanted, roles: Roles) -> None:
        self._shards, self._splits, self._wanted, self._roles = shards, splits, wanted, roles
        self._starts = [0]
        self._labels: set[str] = set()
        self._endings: set[str] = set()
        self._widths = {"ids": 1, "groups": 1}
        self._first_flaw = ""

    def write(self, folder: Path) -> None:
        """Write all files of the index."""
        with ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="shards") as threads:
            for part in threads.map(lambda shard: open_part(shard, self._wanted), self._shards):
                self._measure(part)
        labels, endings = sorted(self._labels), sorted(self._endings)
        with guarded(folder, "write"):
            columns = self._columns(folder, len(endings))
            for number, shard in enumerate(self._shards):
                rows = slice(self._starts[number], self._starts[number + 1])
                part = open_part(shard, self._wanted)
                self._fill({name: column[rows] for name, column in columns.items()}, part, labels, endings)
                columns["splits"][rows] = self._split_codes(part, self._splits[number])
            for column in columns.values():
                column.flush()
        self._require_distinct(folder, columns["ids"])
        document = {
            "labels": labels,
            "endings": endings,
            "starts": self._starts,
            "first_flaw": self._first_flaw,
        }
        storage.write_json(folder / INDEX, document)

    def _measure(self, part: Part) -> None:
        self._starts.append(self._starts[-1] + len(part))
        usable = np.asarray(part.flaws) == 0
        self._labels.update(np.unique(part.names[self._roles.label][usable]).tolist())
        self._endings.update(part.endings)
        for name, values in (("ids", self._ids(part)), ("groups", self._groups(part))):
            if values is not None:
                self._widths[name] = max(self._widths[name], values.dtype.itemsize // 4)
        if not usable.all() and not self._first_flaw:
            row = int(np.flatnonzero(~usable)[0])
            reason = part.reasons[part.flaws[row] - 1]
            self._first_flaw = f"{part.shard.where}: sample {printable(str(part.keys[row]))!r} {reason}"

    def _ids(self, part: Part) -> NDArray[np.str_]:
        return part.keys if self._roles.id is None else part.names[self._roles.id]

    def _groups(self, part: Part) -> NDArray[np.str_] | None:
        return None if self._roles.group is None else part.names[self._roles.group]

    def _columns(self, folder: Path, endings: int) -> dict[str, Any]:
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {
            "ids": (f"<U{self._widths['ids']}", ()),
            "labels": ("<i4", ()),
            "splits": ("i1", ()),
            "usable": ("?", ()),
            "content": ("u1", (DIGEST_BYTES,)),
            "hashes": ("<u8", ()),
            "inputs": ("<u8", ()),
            "offsets": ("<i8", (endings,)),
            "sizes": ("<i8", (endings,)),
            "digests": ("u1", (endings, DIGEST_BYTES)),
        }
        if self._roles.group is not None:
            shapes["groups"] = (f"<U{self._widths['groups']}", ())
        if self._wanted.weight is not None:
            shapes["weights"] = ("<f4", ())
        return {
            name: allocated(folder / f"{name}.npy", dtype, (self._starts[-1], *shape))
            for name, (dtype, shape) in shapes.items()
        }

    def _fill(self, columns: dict[str, Any], part: Part, labels: list[str], endings: list[str]) -> None:
        """Write the entries of one shard; `columns` are views of its rows."""
        usable = np.asarray(part.flaws) == 0
        columns["usable"][:] = usable
        columns["ids"][:] = self._ids(part)
        if "groups" in columns:
            columns["groups"][:] = self._groups(part)
        if "weights" in columns:
            columns["weights"][:] = part.weights
        codes = np.searchsorted(np.asarray(labels or [""]), part.names[self._roles.label])
        columns["labels"][:] = np.where(usable, codes, -1)
        columns["content"][:] = part.content
        columns["hashes"][:] = hash_ids(self._ids(part))
        columns["inputs"][:] = self._inputs(part)
        places = [endings.index(ending) for ending in part.endings]
        for name, absent in (("offsets", -1), ("sizes", -1), ("digests", 0)):
            columns[name][:] = absent
            for column, place in enumerate(places):
                columns[name][:, place] = getattr(part, name)[:, column]

    def _inputs(self, part: Part) -> NDArray[np.uint64]:
        """Return a key of what is embedded of each sample: of its image, or of all members with texts or numbers."""
        fields = (*self._wanted.texts, *self._wanted.numbers)
        keys = np.zeros(len(part), dtype=np.uint64)
        for ending in reversed(self._wanted.images or dict.fromkeys(map(ending_of, fields))):
            if ending not in part.endings:
                continue
            column = part.endings.index(ending)
            digests = np.ascontiguousarray(part.digests[:, column, :8]).view("<u8")[:, 0]
            member = splitmix64(digests if self._wanted.images else digests ^ keys)
            keys = np.where(part.offsets[:, column] >= 0, member, keys)
        return keys

    def _split_codes(self, part: Part, split: str) -> NDArray[np.int8] | int:
        if self._roles.split is None:
            return SPLITS.index(split) if split else -1
        names, inverse = np.unique(part.names[self._roles.split], return_inverse=True)
        codes, usable = np.full(len(names), -1, dtype=np.int8), np.asarray(part.flaws) == 0
        for index, name in enumerate(names.tolist()):
            meaning = split_of(name)
            if meaning is not None:
                codes[index] = SPLITS.index(meaning)
            elif usable[inverse == index].any():
                key = printable(str(part.keys[np.flatnonzero((inverse == index) & usable)[0]]))
                raise DataError(
                    f"{part.shard.where}: sample {key!r} is in {name!r}, which is not a split; write train, validation"
                    " or test"
                )
        return np.asarray(codes[inverse])

    def _require_distinct(self, folder: Path, ids: NDArray[np.str_]) -> None:
        """Refuse two samples with one id, in whatever shards they are."""
        hashes, usable = (Stored(folder / f"{name}.npy") for name in ("hashes", "usable"))
        pair = repeats.repeated(hashes, usable, len(ids), same=lambda sample, before: ids[sample] == ids[before])
        if pair is not None:
            sample, before = pair
            raise DataError(
                f"{self._where(sample)}: the id {printable(str(ids[sample]))!r} is that of a sample of"
                f" {self._where(before)}, too; give each sample a name of its own, or name a field with task.members.id"
            )

    def _where(self, sample: int) -> str:
        return self._shards[int(np.searchsorted(self._starts, sample, side="right")) - 1].where
