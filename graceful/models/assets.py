"""Files that a version keeps beside its weights because its learner names them. Drivers, workers, serving processes.

A tokenizer, a vocabulary or preprocessing numbers lie in the folder `assets` of the version bundle. The ending of a
name says what the file holds: `.json` a JSON value, `.safetensors` tensors by name, any other plain bytes. graceful
executes and unpickles nothing in them, and reads none before its SHA-256 was compared with the one in `arch.json`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors
from torch import Tensor

from graceful import storage
from graceful.errors import DataError, IntegrityError, SpecError, one_line

FOLDER = "assets"
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$"
"""A name is one part of a path, on every file system and in every bucket."""
MOST = 64
"""Files of one version."""
LARGEST = 256 * 2**20
"""Bytes of all files of one version together."""
_PICKLED = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt")


def encode(files: object, *, owner: str) -> dict[str, bytes]:
    """Return the bytes of each file.

    Args:
        files: What a learner's `assets` returned: file name -> content.
        owner: That learner, for messages.

    Raises:
        SpecError: Not a mapping, a name that is not a plain file name, content that does not fit its name, or too much.
    """
    if not isinstance(files, Mapping):
        raise SpecError(f"{owner} returned a {type(files).__name__}; return a mapping of file names to contents")
    _require_names(files, owner)
    contents = {name: _encoded(name, value, owner) for name, value in files.items()}
    size = sum(map(len, contents.values()))
    if len(contents) > MOST or size > LARGEST:
        raise SpecError(
            f"{owner} returned {size} bytes in {len(contents)} files; a version keeps at most {LARGEST} in {MOST}:"
            " put what is learnt into the network"
        )
    return contents


def _require_names(files: Mapping[Any, object], owner: str) -> None:
    folded: dict[str, str] = {}
    for name in files:
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise SpecError(
                f"{owner} names a file {name!a:.60}; a name has at most 100 letters, digits, '.', '-' and '_', and"
                " begins with none of '.' and '-'"
            )
        if name.lower().endswith(_PICKLED):
            raise SpecError(
                f"{owner} names a file {name}, an ending of pickled files, which graceful never reads; keep numbers in"
                " a .json or .safetensors file"
            )
        other = folded.setdefault(name.lower(), name)
        if other != name:
            raise SpecError(f"{owner} names the files {other} and {name}, which some file systems mix up; rename one")


def _encoded(name: str, value: object, owner: str) -> bytes:
    if name.endswith(".json"):
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as e:
            message = f"{owner}: {name} is not a JSON value ({one_line(e)}); give lists, texts and numbers"
            raise SpecError(message) from e
    if name.endswith(".safetensors"):
        if not isinstance(value, Mapping) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
            raise SpecError(f"{owner}: {name} must be a mapping of names to tensors, got a {type(value).__name__}")
        tensors = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in value.items()}
        written: bytes = serialise_tensors(tensors)
        return written
    if not isinstance(value, bytes):
        raise SpecError(
            f"{owner}: {name} must be bytes, got a {type(value).__name__}; for a JSON value let its name end in .json"
        )
    return value


def digests(contents: Mapping[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 of each file, by name in order."""
    return {name: hashlib.sha256(contents[name]).hexdigest() for name in sorted(contents)}


def write(bundle: Path, contents: Mapping[str, bytes]) -> None:
    """Put the files into a bundle, and remove what an older bundle left there.

    Raises:
        StorageError: The disk is full or refuses.
    """
    shutil.rmtree(bundle / FOLDER, ignore_errors=True)
    for name, content in contents.items():
        storage.write_bytes(bundle / FOLDER / name, content)


def read(bundle: Path, recorded: Mapping[str, str]) -> dict[str, Any]:
    """Return what each file holds: a JSON value, tensors by name, or bytes.

    Args:
        bundle: Folder of the version.
        recorded: Name -> SHA-256, from its description.

    Raises:
        IntegrityError: A file has another digest than was recorded.
        DataError: A file is missing, too large, or its content does not fit its name.
    """
    values, remaining_bytes = {}, LARGEST
    for name, expected in recorded.items():
        path = bundle / FOLDER / name
        if not path.is_file():
            raise DataError(f"{path}: missing; fetch the version again")
        remaining_bytes -= path.stat().st_size
        if remaining_bytes < 0:
            raise DataError(f"{path}: the files of {path.parent} hold more than {LARGEST} bytes; fetch it again")
        content = storage.read_bytes(path)
        actual = hashlib.sha256(content).hexdigest()
        if actual != expected:
            raise IntegrityError(
                f"{path}: SHA-256 must be {expected[:12]}..., got {actual[:12]}...; fetch the version again",
                {"path": str(path), "expected": expected, "found": actual},
            )
        values[name] = _decoded(path, content)
    return values


def _decoded(path: Path, content: bytes) -> Any:
    try:
        if path.name.endswith(".json"):
            return json.loads(content)
        return parse_tensors(content) if path.name.endswith(".safetensors") else content
    except (ValueError, RecursionError, SafetensorError) as e:
        raise DataError(f"{path}: its content does not fit its name ({one_line(e)}); fetch the version again") from e
