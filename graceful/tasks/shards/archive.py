"""The members of one tar file, in order, with their bytes; what is damaged is said. Driver and workers.

tarfile parses the headers. Nothing is extracted, and no name of a member is used as a path. tarfile takes a damaged
header for the end of the archive, so the marks of its end are looked for here.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from graceful.errors import DataError, one_line
from graceful.tasks.image_layout import is_debris
from graceful.tasks.image_listing import printable
from graceful.tasks.shards.files import Shard, ShardStream

BUFFER = 2**20
"""Bytes that are read at once while a shard is walked."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}
_UNPARSED = (tarfile.TarError, EOFError, ValueError, OverflowError, IndexError)
"""Errors that tarfile raises for bytes that are not an archive; OSError does not occur, for the stream says what is
wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One file of a shard.

    Attributes:
        key: Its path up to the first dot of its name: that of the sample.
        ending: What follows, in lower case.
        offset: The offset of its first byte in the shard.
        data: Its bytes.
    """

    key: str
    ending: str
    offset: int
    data: bytes


def walk(shard: Shard) -> Iterator[Member]:
    """Yield the members of a shard; folders, hidden files and names without a dot are left out.

    Raises:
        DataError: No plain tar file, truncated, damaged, or with a link; the shard, the member and a remedy.
        StorageError: A bucket cannot be reached.
    """
    _require_plain(shard)
    stream: BinaryIO = io.BufferedReader(ShardStream(shard), buffer_size=BUFFER)
    last = "the first member"
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
                last = f"member {printable(info.name)}"
                member = _member(shard, stream, info)
                if member is not None:
                    yield member
            _require_end(shard, stream, archive.offset, last)
    except _UNPARSED as e:
        raise _damaged(shard, f"after {last}", one_line(e)) from e


def split_name(name: str) -> tuple[str, str] | None:
    """Return key and ending of a member's name; None: it belongs to no sample.

    `a/000123.seg.png` is the member `seg.png` of the sample `a/000123`.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or any(is_debris(part) for part in parts):
        return None
    stem, dot, ending = parts[-1].partition(".")
    if not dot or not ending or (stem.startswith("__") and stem.endswith("__")):
        return None
    return "/".join([*parts[:-1], stem]), ending.lower()


def _member(shard: Shard, stream: BinaryIO, info: tarfile.TarInfo) -> Member | None:
    if info.isdir() or split_name(info.name) is None:
        return None
    name = printable(info.name)
    if not info.isreg() or info.issparse():
        raise DataError(
            f"{shard.where}: member {name} is a link, a sparse or a special file; write the file itself, as"
            " `tar --dereference --hard-dereference` does"
        )
    key, ending = split_name(info.name) or ("", "")
    try:
        key.encode()
    except UnicodeEncodeError as e:
        raise DataError(f"{shard.where}: member {name} has a name that is not UTF-8; rename it") from e
    stream.seek(info.offset_data)
    data = stream.read(info.size) if info.offset_data + info.size <= shard.size else b""
    if len(data) != info.size:
        raise DataError(
            f"{shard.where}: member {name} is truncated, {info.size} bytes from {info.offset_data} where the shard has"
            f" {shard.size}; copy or write the shard again"
        )
    return Member(key=key, ending=ending, offset=info.offset_data, data=data)


def _require_plain(shard: Shard) -> None:
    if shard.size == 0:
        raise DataError(f"{shard.where}: is empty; leave the shard out or write it again")
    begin = shard.read(0, 8)
    for magic, name in _COMPRESSED.items():
        if begin.startswith(magic):
            raise DataError(
                f"{shard.where}: is compressed ({name}), and ranges of it cannot be read; store the plain tar, whose"
                " images are compressed already"
            )


def _require_end(shard: Shard, stream: BinaryIO, offset: int, last: str) -> None:
    """Refuse a shard that does not end as an archive does: with blocks of zeros, and nothing else."""
    stream.seek(offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise _damaged(shard, f"after {last}", "it ends without the mark of an archive's end")
    while block:
        if block.strip(b"\0"):
            raise _damaged(shard, f"after {last}", "what follows is not a member")
        block = stream.read(BUFFER)


def _damaged(shard: Shard, place: str, reason: str) -> DataError:
    return DataError(f"{shard.where}: truncated or damaged {place} ({reason:.200}); copy or write the shard again")
