"""Read torch's files of tensors without running code that may have been put into them. Runs in workers.

A file that `torch.save` writes holds a pickle, and a pickle may call any function of the machine that reads it. torch's
restricted unpickler builds tensors, containers, plain values and classes that it is given, and refuses all else.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from graceful.errors import IntegrityError

_UNREADABLE = (
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors of torch and its unpickler for bytes that are no such file, or that name what is not allowed."""
_NAMED = re.compile(r"GLOBAL ([\w.]+)")


def _member(kind: Any, name: Any) -> Any:
    """Stand in for `getattr`, with which Python 3.11.0 to 3.11.3 and others pickle members of enumerations.

    Raises:
        UnpicklingError: It is asked for anything but a member of an enumeration.
    """
    if not (isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__):
        raise pickle.UnpicklingError("GLOBAL getattr of what is not an enumeration")
    return kind.__members__[name]


def load_tensors(path: Path, *, map_location: Any, classes: Sequence[type] = ()) -> Any:
    """Return what `torch.save` wrote, if it is made of tensors, containers and plain values.

    Args:
        path: The path of the file.
        map_location: Where tensors go, as `torch.load` takes it.
        classes: Further classes whose instances may occur; plain holders of values.

    Raises:
        IntegrityError: The file names anything else, which would run as code, or it is not a file of tensors.
        OSError: It cannot be read.
    """
    try:
        with torch.serialization.safe_globals([*classes, (_member, "builtins.getattr")]):
            return torch.load(path, map_location=map_location, weights_only=True)
    except _UNREADABLE as e:
        named = _NAMED.search(str(e))
        problem = f"holds code ({named[1]}), which is not run" if named else "cannot be read as tensors"
        message = f"checkpoint file {path} {problem}"
        raise IntegrityError(
            f"{message}; delete the run's folder to start the run again", {"path": str(path), "found": message}
        ) from e
