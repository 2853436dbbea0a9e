"""The index of one shard: where each member is, its digest, and the names that a task reads. Driver and workers.

    keys.npy      [n] str           the members' name without its ending
    offsets.npy   [n, m] int64      of the first byte of the member with the j-th ending; -1 where there is none
    sizes.npy     [n, m] int64
    digests.npy   [n, m, 12] uint8
    content.npy   [n, 12] uint8     of all members of the sample
    names-j.npy   [n] str           value of the j-th field that names something; empty where there is none
    weights.npy   [n] float32       only where a field names them
    flaws.npy     [n] uint8         0, or 1 + the number of the reason why the sample cannot be used
    part.json     endings, reasons, passed over

A part is written once below graceful's folder, under a lock, and opened by memory-mapping afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from graceful import homes, locks, storage
from graceful.errors import DataError
from graceful.files import guarded, mark_used
from graceful.tasks.image_listing import printable
from graceful.tasks.shards import fields
from graceful.tasks.shards.archive import Member, walk
from graceful.tasks.shards.files import Shard

FORMAT = 1
"""Raised whenever the files of an index change their meaning."""
DIGEST_BYTES = 12
MOST_ENDINGS = 32
PART = "part.json"
_MOST_REASONS = 250
Digests = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is read of each sample while a shard is walked.

    Attributes:
        names: Fields whose values are kept: label first, then id, group and split where they are fields.
        texts: Fields that must be texts.
        numbers: Fields that must be numbers.
        weight: Field of a number that is kept; None: there is none.
        images: Endings of which each sample must have one.
        decode: Whether images are decoded, to find those that cannot be.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    weight: str | None = None
    images: tuple[str, ...] = ()
    decode: bool = False


@dataclass(frozen=True, kw_only=True)
class Part:
    """The index of one shard, opened; arrays as in the files."""

    shard: Shard
    endings: tuple[str, ...]
    reasons: tuple[str, ...]
    keys: NDArray[np.str_]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    digests: Digests
    content: Digests
    names: tuple[NDArray[np.str_], ...]
    flaws: NDArray[np.uint8]
    weights: NDArray[np.float32] | None

    def __len__(self) -> int:
        return len(self.keys)


def digest_of(data: bytes) -> bytes:
    """Return the digest of a member."""
    return blake2b(data, digest_size=DIGEST_BYTES).digest()


def folder_of(shard: Shard, wanted: Wanted) -> Path:
    """Return where the index of a shard is."""
    identity = [FORMAT, shard.identity(), asdict(wanted)]
    name = storage.sha256_json(identity)
    return root() / "parts" / name[:2] / name


def root() -> Path:
    """Return the folder of all indices."""
    return homes.folder() / "cache" / "shards"


def open_part(shard: Shard, wanted: Wanted) -> Part:
    """Return the index of a shard; it is made where there is none.

    Raises:
        DataError: The shard is damaged or changed while it was read.
        StorageError: It cannot be read, or the index cannot be written.
    """
    folder = folder_of(shard, wanted)
    made_once(folder, lambda target: _Builder(shard, wanted).write(target))
    facts = read_facts(folder / PART)
    arrays = {
        name: load_array(folder / f"{name}.npy") for name in ("keys", "offsets", "sizes", "digests", "content", "flaws")
    }
    return Part(
        shard=shard,
        endings=tuple(facts["endings"]),
        reasons=tuple(facts["reasons"]),
        weights=None if wanted.weight is None else load_array(folder / "weights.npy"),
        names=tuple(load_array(folder / f"names-{index}.npy") for index in range(len(wanted.names))),
        **arrays,
    )


def made_once(folder: Path, make: Callable[[Path], None]) -> None:
    """Make a folder with a function that fills it; other processes wait, and see it whole or not at all."""
    if folder.is_dir():
        return
    with guarded(folder, "write"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locks.exclusive(folder.with_name(f"{folder.name}.lock"), seconds=None):
            if folder.is_dir():
                return
            with _temporary(folder) as target:
                make(target)
                os.rename(target, folder)


def load_array(path: Path) -> NDArray[Any]:
    """Return an array of an index, memory-mapped.

    Raises:
        DataError: The file is damaged or gone.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise _damaged(path) from e
    return array


def read_facts(path: Path) -> dict[str, Any]:
    """Return the JSON object that describes an index.

    Raises:
        DataError: The file is damaged or gone.
    """
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise _damaged(path) from e
    assert isinstance(facts, dict)
    mark_used(path)
    return facts


def _damaged(path: Path) -> DataError:
    return DataError(f"{path}: the index of shards is damaged; delete {root()}, and it is made again")


def allocated(path: Path, dtype: Any, shape: tuple[int, ...]) -> Any:
    """Return a new `.npy` file as a writable map, with its space on disk: a full disk is an error here and no signal
    later.

    Raises:
        OSError: The disk is full.
    """
    array = open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    target = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
    try:
        yield target
    finally:
        shutil.rmtree(target, ignore_errors=True)


@dataclass
class _Builder:
    """What is known of a shard while it is walked; one entry for each sample."""

    shard: Shard
    wanted: Wanted
    keys: list[str] = field(default_factory=list)
    places: list[dict[str, tuple[int, int, bytes]]] = field(default_factory=list)
    names: list[tuple[str, ...]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    flaws: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Walk the shard and write its index."""
        sample: list[Member] = []
        for member in walk(self.shard):
            if sample and member.key != sample[0].key:
                self._add(sample)
                sample = []
            sample.append(member)
        if not sample:
            raise DataError(f"{self.shard.where}: holds no member KEY.ENDING; leave the shard out or write it again")
        self._add(sample)
        endings = sorted({ending for place in self.places for ending in place})
        if len(endings) > MOST_ENDINGS:
            raise DataError(
                f"{self.shard.where}: its members have more than {MOST_ENDINGS} endings ({', '.join(endings[:3])} ...);"
                " name members KEY.ENDING with the same endings for every sample"
            )
        arrays = self._arrays(endings)
        with guarded(folder, "write"):
            for name, array in arrays.items():
                np.save(folder / f"{name}.npy", array, allow_pickle=False)
        storage.write_json(folder / PART, {"shard": self.shard.where, "endings": endings, "reasons": self.reasons})

    def _add(self, sample: list[Member]) -> None:
        members = {member.ending: member for member in sample}
        if len(members) < len(sample):
            raise DataError(
                f"{self.shard.where}: two members of sample {printable(sample[0].key)!r} have the same ending; give"
                " each a name of its own"
            )
        names, weight, reason = self._read(sample[0].key, {ending: one.data for ending, one in members.items()})
        self.keys.append(sample[0].key)
        self.places.append(
            {ending: (one.offset, len(one.data), digest_of(one.data)) for ending, one in members.items()}
        )
        self.names.append(names)
        self.weights.append(weight)
        self.flaws.append(self._flaw(reason))

    def _flaw(self, reason: str) -> int:
        """Return the number of a reason; those beyond the last number share it, for only the first one is shown."""
        if not reason:
            return 0
        if reason not in self.reasons and len(self.reasons) < _MOST_REASONS:
            self.reasons.append(reason)
        return 1 + self.reasons.index(reason) if reason in self.reasons else _MOST_REASONS

    def _read(self, key: str, members: Mapping[str, bytes]) -> tuple[tuple[str, ...], float, str]:
        """Return the names of a sample, its weight, and why it cannot be used; empty: it can."""
        wanted = self.wanted
        try:
            names = tuple(fields.name_of(name, members) for name in wanted.names)
            for name in wanted.texts:
                fields.text_of(name, members)
            for name in wanted.numbers:
                fields.number_of(name, members)
            weight = 1.0 if wanted.weight is None else fields.number_of(wanted.weight, members)
            if weight < 0.0:
                raise ValueError(f"has the weight {weight:g}, which must be at least 0")
            if wanted.images:
                self._require_image(key, members)
        except ValueError as e:
            return ("",) * len(wanted.names), 0.0, str(e)
        return names, weight, ""

    def _require_image(self, key: str, members: Mapping[str, bytes]) -> None:
        ending = next((name for name in self.wanted.images if name in members), None)
        if ending is None:
            raise ValueError(f"has no member .{' or .'.join(self.wanted.images)}")
        if not members[ending]:
            raise ValueError(f"has an empty member .{ending}")
        if self.wanted.decode:
            from graceful.tasks.photos import Frame, image_of, read_photo

            try:
                read_photo(image_of(key, where=key, load=lambda: members[ending]), Frame(size=8, decode="reduced"))
            except DataError as e:
                raise ValueError(f"has a member .{ending} that is not a readable image") from e

    def _arrays(self, endings: list[str]) -> dict[str, NDArray[Any]]:
        shape = (len(self.keys), len(endings))
        offsets, sizes = np.full(shape, -1, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
        digests = np.zeros((*shape, DIGEST_BYTES), dtype=np.uint8)
        content = np.zeros((shape[0], DIGEST_BYTES), dtype=np.uint8)
        for row, place in enumerate(self.places):
            for column, ending in enumerate(endings):
                if ending in place:
                    offset, size, digest = place[ending]
                    offsets[row, column], sizes[row, column] = offset, size
                    digests[row, column] = np.frombuffer(digest, dtype=np.uint8)
            whole = b"".join(ending.encode() + b"\0" + place[ending][2] for ending in sorted(place))
            content[row] = np.frombuffer(digest_of(whole), dtype=np.uint8)
        arrays: dict[str, NDArray[Any]] = {
            "keys": np.asarray(self.keys, dtype=np.str_),
            "offsets": offsets,
            "sizes": sizes,
            "digests": digests,
            "content": content,
            "flaws": np.asarray(self.flaws, dtype=np.uint8),
        }
        if self.wanted.weight is not None:
            arrays["weights"] = np.asarray(self.weights, dtype=np.float32)
        for index in range(len(self.wanted.names)):
            arrays[f"names-{index}"] = np.asarray([names[index] for names in self.names], dtype=np.str_)
        return arrays
