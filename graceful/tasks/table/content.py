"""Digests of what rows of a table hold: of a split as a whole, and of each row to find those that repeat. numpy, Arrow.

Digests do not depend on how a file spells a type: 1 is the same as int8 and int64, a text as string and large_string.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.tasks.hashing import splitmix64

SEED = 0x243F6A8885A308D3
"""Seed of the keys of rows: digits of pi."""
_NAMED = np.dtype([("keys", ">u8"), ("more", ">u4")])
"""A digest of 12 bytes in two numbers."""
_FOLDED = np.zeros(256, dtype=np.bool_)
_FOLDED[[*b"abcdefghijklmnopqrstuvwxyz0123456789", *range(128, 256)]] = True
"""Bytes that remain of a text in small letters where spelling does not count."""


class Content:
    """The SHA-256 of rows that come block by block; it depends on where blocks begin.

    Args:
        columns: All columns, in any order.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns, self._digest = sorted(columns), hashlib.sha256()

    def update(self, values: Any) -> None:
        """Add a block: a function or mapping from a column's name to a `pyarrow.Array`."""
        for name in self._columns:
            self._digest.update(f"{name}\0".encode())
            _update(self._digest, values(name))

    def hexdigest(self) -> str:
        """Return the digest of what was added."""
        return self._digest.hexdigest()


def _update(digest: Any, values: Any) -> None:
    """Add one array: how many, which are null, and the bytes of the others."""
    import pyarrow as pa

    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kinds, kind = pa.types, values.type
    digest.update(struct.pack("<qq", len(values), values.null_count))
    if values.null_count == len(values):
        return
    if values.null_count:
        digest.update(np.packbits(np.asarray(values.is_valid())).tobytes())
        values = values.drop_null()
    if kinds.is_struct(kind):
        for index, field in enumerate(values.flatten()):
            digest.update(f"{kind.field(index).name}\0".encode())
            _update(digest, field)
    elif kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        digest.update(np.asarray(pa.compute.list_value_length(values), dtype="<i8").tobytes())
        _update(digest, values.flatten())
    else:
        for part in _bytes_of(values):
            digest.update(part)


def _bytes_of(values: Any) -> tuple[Any, ...]:
    """Return the kind of an array without nulls, and its bytes."""
    import pyarrow as pa

    kinds, kind = pa.types, values.type
    if kinds.is_integer(kind) or kinds.is_boolean(kind):
        return b"i", np.asarray(values.cast("uint64" if kinds.is_uint64(kind) else "int64")).tobytes()
    if kinds.is_floating(kind):
        numbers = np.asarray(values.cast("float64"))
        return b"f", np.where(np.isnan(numbers), np.nan, numbers).tobytes()
    if _is_text(kind):
        data, offsets = text_bytes(values)
        return b"t", offsets.tobytes(), data.tobytes()
    return b"r", "\0".join(map(repr, values.to_pylist())).encode("utf-8", "surrogatepass")


def text_bytes(values: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the bytes of B texts, one after the other, and where each begins and the last ends, [B + 1]."""
    wide = "<i8" if "large" in str(values.type) else "<i4"
    _, positions, data = values.buffers()
    offsets = np.frombuffer(positions, dtype=wide)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    content = np.frombuffer(data if data is not None else b"", dtype=np.uint8)[offsets[0] : offsets[-1]]
    return content, offsets - offsets[0]


def _is_text(kind: Any) -> bool:
    return str(kind) in ("string", "large_string", "binary", "large_binary")


# --- each row ---------------------------------------------------------------------------------------------------------


def keys(columns: Sequence[Any]) -> NDArray[np.uint64]:
    """Return 64 bits for each row, [B], that are the same for rows that hold the same.

    Args:
        columns: `pyarrow.Array`s of texts or numbers.
    """
    hashes = np.full(len(columns[0]), SEED, dtype=np.uint64)
    for values in columns:
        hashes = splitmix64(hashes ^ (_text_keys(values) if _is_text(values.type) else _number_bits(values)))
        if values.null_count:
            missing = np.asarray(values.is_null())
            hashes[missing] = splitmix64(~hashes[missing])
    return hashes


def named_keys(columns: Sequence[Any]) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Return 64 and 32 more bits for each row, [B] each, of which the names of rows without an id are made.

    Two of 10^8 different rows have the same with a probability of 10^-13. Slower than `keys`.
    """
    digests = [
        blake2b("\0".join(map(repr, row)).encode("utf-8", "surrogatepass"), digest_size=12).digest()
        for row in zip(*(values.to_pylist() for values in columns), strict=True)
    ]
    parts = np.frombuffer(b"".join(digests), dtype=_NAMED)
    return parts["keys"].astype(np.uint64), parts["more"].astype(np.uint32)


def named_points(keys: NDArray[np.uint64], more: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Return the code points of the names that `named_keys` stand for: 24 hexadecimal digits each, [B, 24]."""
    parts = np.empty(len(keys), dtype=_NAMED)
    parts["keys"], parts["more"] = keys, more
    digits = parts.view(np.uint8).reshape(len(keys), 12)
    nibbles = np.stack([digits >> 4, digits & 15], axis=2).reshape(len(keys), 24)
    return np.frombuffer(b"0123456789abcdef", dtype=np.uint8)[nibbles]


def folded_keys(columns: Sequence[Any]) -> NDArray[np.uint64]:
    """Return the keys of texts without case, white space and ASCII punctuation.

    A text of which nothing is left has the key of the whole text.
    """
    return keys([_folded(values) for values in columns])


def points(values: Any) -> NDArray[np.unsignedinteger[Any]]:
    """Return the code points of B texts, [B, W], 0 behind the end of each, as `hashing.hash_points` takes them."""
    if text_bytes(values)[0].max(initial=0) > 127:
        names = np.asarray(values.to_pylist(), dtype=np.str_)
        return names.view(np.uint32).reshape(len(names), -1)
    width = longest(values)
    return fixed_width(values, width).view(np.uint8).reshape(len(values), width)


def longest(values: Any) -> int:
    """Return the bytes of the longest of some texts in UTF-8, at least 1."""
    return max(int(np.diff(text_bytes(values)[1]).max(initial=0)), 1)


def fixed_width(values: Any, width: int) -> NDArray[np.bytes_]:
    """Return B texts in UTF-8, none of more bytes than `width`, as an array of that width."""
    data, offsets = text_bytes(values)
    matrix = np.zeros((len(values), width), dtype=np.uint8)
    matrix[np.arange(width) < np.diff(offsets)[:, None]] = data
    return matrix.view(f"S{width}").reshape(len(values))


def _folded(values: Any) -> Any:
    import pyarrow as pa
    from pyarrow import compute

    small = compute.utf8_lower(compute.fill_null(values, "")).cast("large_binary")
    content, offsets = text_bytes(small)
    kept = _FOLDED[content]
    ends = np.concatenate([[0], np.cumsum(kept)])[offsets]
    buffers = [None, pa.py_buffer(ends.astype("<i8").tobytes()), pa.py_buffer(content[kept].tobytes())]
    folded = pa.Array.from_buffers(pa.large_binary(), len(small), buffers)
    return compute.if_else(pa.array(np.diff(ends) > 0), folded, small)


def _number_bits(values: Any) -> NDArray[np.uint64]:
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_null(values.type):
        return np.zeros(len(values), dtype=np.uint64)
    wide = "float64" if pa.types.is_floating(values.type) else "uint64" if pa.types.is_uint64(values.type) else "int64"
    numbers: NDArray[Any] = np.asarray(compute.fill_null(values.cast(wide), 0))
    return np.ascontiguousarray(numbers).view(np.uint64)


def _text_keys(values: Any) -> NDArray[np.uint64]:
    from pyarrow import compute

    texts = compute.fill_null(values.cast("large_binary"), b"").to_pylist()
    return np.frombuffer(b"".join([blake2b(text, digest_size=8).digest() for text in texts]), dtype=np.uint64)
