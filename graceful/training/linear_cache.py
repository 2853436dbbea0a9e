"""What follows from w0 and inputs alone, kept in the home folder: kernels and curvature of many fits. Runs in workers.

A search over weights and another penalty solve systems of the same matrix. A file is named by the digest of all that
determines it; a damaged one is made again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors
from torch import Tensor

from graceful.errors import StorageError
from graceful.storage import read_bytes, sha256_json, write_bytes

KEPT = 8
"""Files that stay; older ones are deleted."""
_ENDING = ".safetensors"


def remembered(folder: Path, key: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors from a file, or make and keep them.

    Args:
        folder: The folder of the files.
        key: What determines the tensors, as JSON values.
        make: Makes them.
    """
    path = folder / f"{sha256_json(dict(key))[:32]}{_ENDING}"
    with suppress(StorageError, SafetensorError, ValueError):
        if path.is_file():
            tensors: dict[str, Tensor] = parse_tensors(read_bytes(path))
            os.utime(path)
            return tensors
    made = make()
    with suppress(StorageError):  # a full disk costs the next fit its time, not this one its result
        write_bytes(path, serialise_tensors({name: tensor.cpu().contiguous() for name, tensor in made.items()}))
        _prune(folder)
    return made


def _prune(folder: Path) -> None:
    files = sorted(folder.glob(f"*{_ENDING}"), key=lambda path: path.stat().st_mtime)
    for path in files[:-KEPT]:
        path.unlink(missing_ok=True)
