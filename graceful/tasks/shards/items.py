"""Samples of shards as raw items: bytes of members by range, checked against the index. Driver and workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError
from graceful.tasks.image_listing import in_threads, printable
from graceful.tasks.photos import Frame, Photo, image_of, read_photo
from graceful.tasks.shards import fields
from graceful.tasks.shards.index import Index
from graceful.tasks.shards.part import digest_of


class MemberReader:
    """Reads members of an index.

    Args:
        index: Where they are.
    """

    def __init__(self, index: Index) -> None:
        self._index = index

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
        return self._index.array("offsets"), self._index.array("sizes"), self._index.array("digests")

    @cached_property
    def _ids(self) -> NDArray[np.str_]:
        return self._index.array("ids")

    def where(self, sample: int, ending: str) -> str:
        """Return shard and name of a member, for a message."""
        shard, _ = self._index.place(sample)
        return f"{shard.where}, member {printable(str(self._ids[sample]))}.{ending}"

    def has(self, sample: int, ending: str) -> bool:
        """Return whether a sample has a member of this ending."""
        return ending in self._index.endings and self._arrays[0][sample, self._index.endings.index(ending)] >= 0

    def read(self, sample: int, ending: str) -> bytes:
        """Return the bytes of a member.

        Raises:
            DataError: The shard changed, or cannot be read any more.
            StorageError: A bucket cannot be reached.
        """
        offsets, sizes, digests = self._arrays
        column = self._index.endings.index(ending)
        offset, size = int(offsets[sample, column]), int(sizes[sample, column])
        wanted, (shard, _) = digests[sample, column].tobytes(), self._index.place(sample)
        data = shard.read(offset, size)
        if digest_of(data) != wanted and shard.forget(offset, size):
            data = shard.read(offset, size)
        if digest_of(data) != wanted:
            raise DataError(
                f"{self.where(sample, ending)}: has other bytes than when the shard was indexed; restore the shard, or"
                " write what is new to a shard of another name"
            )
        return data

    def members(self, sample: int, endings: Sequence[str]) -> dict[str, bytes]:
        """Return the members of a sample with these endings, by ending; those that it has."""
        return {ending: self.read(sample, ending) for ending in endings if self.has(sample, ending)}


class ShardRows(Sequence[dict[str, Any]]):
    """Some samples with texts or numbers; a field is read when a learner asks for it.

    Args:
        reader: Of their members.
        samples: [B] which samples of the index.
        inputs: Fields that the new version embeds, for `texts`.
    """

    def __init__(self, reader: MemberReader, samples: NDArray[np.int64], *, inputs: Sequence[str]) -> None:
        self._reader, self._samples, self._inputs = reader, samples, inputs
        self._members: dict[tuple[int, str], dict[str, bytes]] = {}

    def __len__(self) -> int:
        return len(self._samples)

    def column(self, name: str) -> list[Any]:
        """Return a field of these samples, in their order.

        Raises:
            DataError: A sample has no such field, or its shard changed.
        """
        return in_threads(partial(self._value, name), self._samples.tolist())

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Return a field of these samples as numbers, [B].

        Raises:
            DataError: A sample has no number there, or its shard changed.
        """
        values = in_threads(partial(self._value, name, read=fields.number_of), self._samples.tolist())
        return np.fromiter(values, dtype=np.float64, count=len(self))

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> ShardRows: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | ShardRows:
        """Return the inputs of one sample by field, or some of these samples."""
        if isinstance(index, slice):
            return ShardRows(self._reader, self._samples[index], inputs=self._inputs)
        return {name: self._value(name, int(self._samples[index])) for name in self._inputs}

    def texts(self) -> list[str]:
        """Return what is embedded of each sample, for people to read."""
        columns = [
            [value if isinstance(value, str) else f"{name} = {value}" for value in self.column(name)]
            for name in self._inputs
        ]
        return [" | ".join(row) for row in zip(*columns, strict=True)]

    def _value(
        self, name: str, sample: int, *, read: Callable[[str, Mapping[str, bytes]], Any] = fields.value_of
    ) -> Any:
        ending = fields.ending_of(name)
        try:
            if (sample, ending) not in self._members:  # a JSON member may hold several fields
                self._members[sample, ending] = self._reader.members(sample, (ending,))
            return read(name, self._members[sample, ending])
        except ValueError as e:
            raise DataError(f"{self._reader.where(sample, ending)}: the sample {e}; correct the shard") from e


def read_photos(
    reader: MemberReader, samples: NDArray[np.int64], *, endings: Sequence[str], frame: Frame
) -> list[Photo]:
    """Read and decode an image of each sample.

    Raises:
        DataError: One has none or cannot be decoded, or its shard changed.
    """

    def photo(sample: int) -> Photo:
        ending = next((name for name in endings if reader.has(sample, name)), endings[0])
        where = reader.where(sample, ending)
        return read_photo(image_of(where, where=where, load=partial(reader.read, sample, ending)), frame)

    return in_threads(photo, samples.tolist())
