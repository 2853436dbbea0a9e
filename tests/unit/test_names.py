"""Names that are read lazily: as an array when they are used, and never all at once where that is not needed."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from graceful.targets import files
from graceful.tasks.base import Samples
from graceful.tasks.hashing import split_digest
from graceful.tasks.names import AT_ONCE, Names, blocks, encode_ids, ids_digest, positions_of, shared

COUNT = AT_ONCE + 100
TEXTS = np.asarray([f"row-{index}" for index in range(COUNT)])


def lazy(texts: NDArray[np.str_] = TEXTS, *, source: tuple[str, str] | None = None) -> Names:
    return Names(len(texts), lambda positions: texts[positions], source=source)


def test_lazy_names_are_indexed_like_an_array() -> None:
    names = lazy()
    assert len(names) == COUNT
    assert names.shape == TEXTS.shape
    assert names[3] == TEXTS[3]
    assert names[-1] == TEXTS[-1]
    with pytest.raises(IndexError):
        names[COUNT]
    mask = np.arange(COUNT) % 7 == 0
    for index in (slice(5, 9), slice(None, None, 1000), np.asarray([4, -1, 4]), mask):
        np.testing.assert_array_equal(names[index], TEXTS[index])
    np.testing.assert_array_equal(np.asarray(names), TEXTS)
    assert names.tolist() == TEXTS.tolist() == list(names)
    assert [len(block) for block in blocks(names)] == [AT_ONCE, 100]
    assert np.asarray(lazy(TEXTS[:0])).shape == (0,)


@pytest.mark.parametrize("texts", [TEXTS, np.asarray(["a", "é", "日本語"]), TEXTS[:1], TEXTS[:0]])
def test_digests_of_lazy_names_are_those_of_arrays(texts: NDArray[np.str_]) -> None:
    labels = np.arange(len(texts)) % 2
    assert split_digest(lazy(texts), labels, ("x", "y"), "c") == split_digest(texts, labels, ("x", "y"), "c")
    encoded = np.asarray(np.char.encode(texts, "utf-8"), dtype=np.bytes_)
    assert encode_ids(texts).dtype == encoded.dtype
    np.testing.assert_array_equal(encode_ids(texts), encoded)
    assert ids_digest(texts) == ids_digest(lazy(texts)) == files.array_digest(encoded)


def test_names_are_found_among_others_wherever_they_lie() -> None:
    wanted = np.asarray(["none", "row-7", f"row-{COUNT - 1}", "row-7", "zzz"])
    for names in (TEXTS, lazy()):
        assert positions_of(wanted, names).tolist() == [-1, 7, COUNT - 1, 7, -1]
        assert positions_of(wanted[:0], names).tolist() == []
        assert shared(wanted, names).tolist() == sorted({"row-7", f"row-{COUNT - 1}"})
    assert positions_of(np.asarray(["a"]), np.asarray(["b", "a", "a"])).tolist() == [1]
    assert shared(lazy(source=("t", "train")), lazy(source=("t", "test"))).tolist() == []
    for second in (("t", "train"), ("u", "test"), None):
        assert len(shared(lazy(source=("t", "train")), lazy(source=second))) == COUNT


def test_samples_with_lazy_names_read_none_of_them() -> None:
    def unread(positions: NDArray[np.int64]) -> NDArray[np.str_]:
        raise AssertionError("read")

    count = 10**7
    labels = np.zeros(count, dtype=np.int64)
    tracemalloc.start()
    try:
        samples = Samples(
            ids=Names(count, unread), labels=labels, classes=("a",), groups=Names(count, unread), read=id, digest="d"
        )
        assert len(samples) == count
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
