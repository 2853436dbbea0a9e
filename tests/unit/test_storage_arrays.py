"""Headers of `.npy` files that numpy's own parser stumbles over are one clear error, wherever they are read."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from graceful.errors import DataError, IntegrityError
from graceful.storage import arrays
from graceful.targets import columns

WHOLE = "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }\n"
HEADERS = {
    "open brackets": "(((\n",
    "type of no parts": WHOLE.replace("'<f4'", "()"),
    "minuses": "-" * 9000,
    "commas in a type": WHOLE.replace("'<f4'", "'<f4,,'"),
    "list as a key": WHOLE.replace("'<f4'", "{[]:1}"),
    "indentation": "  1\n 2\n",
    "half a character": WHOLE.replace("'<f4'", "'\\ud800'"),
    "truth as a length": WHOLE.replace("4,", "True,"),
    "more than fits": WHOLE.replace("4,", f"{10**25},"),
    "more than fits together": WHOLE.replace("4,", f"{2**62}, 2, 2"),
    "negative": WHOLE.replace("4,", "-4,"),
    "not a mapping": "[1]\n",
}


def npy(header: str) -> bytes:
    """A file with a header of one's own, before 16 bytes."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("latin1") + bytes(16)


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_a_damaged_header_is_one_line_of_every_reader(header: str, tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    path.write_bytes(npy(header))
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        arrays.read_npy(path, kind="f4")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.write(path, "ids.npy")
    with pytest.raises(DataError, match=r"a\.npz: no predictions \([^\n]+$"):
        arrays.read_npz(tmp_path / "a.npz", kinds={"ids": "f4"}, description="predictions")
    for name in ("offsets.npy", "present.npy", "embeddings.npy", "logits.npy"):
        np.save(tmp_path / name, np.zeros(4, np.float32))
    names = ["ids.npy", "offsets.npy", "present.npy", "embeddings.npy", "logits.npy"]
    (tmp_path / "embeddings.npy").write_bytes(npy(header))  # the first that is read
    with pytest.raises(IntegrityError, match=r"embeddings\.npy cannot be read \([^\n]+$"):
        columns.mapped(tmp_path, names=names, classes=2)


def test_a_whole_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    path.write_bytes(npy(WHOLE))
    assert arrays.read_npy(path, kind="f4").tolist() == [0.0] * 4
