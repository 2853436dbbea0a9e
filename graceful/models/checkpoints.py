"""Checkpoints of Hugging Face transformers: a folder, or a commit of a hub repository. Driver and workers.

Only safetensors and JSON are read; code that a checkpoint names is never run.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from graceful import storage
from graceful.errors import DataError, SpecError

CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
"""Which tensor is in which file, where the weights are in several."""
_NAMES_CODE = {
    "auto_map",
    "custom_pipelines",
    *(
        f"{start}{part}_implementation{end}"
        for start in ("", "_")
        for part in ("attn", "experts")
        for end in ("", "_internal")
    ),
}
"""Keys of a configuration that lead to code outside transformers."""
LARGEST = 64 * 2**20
"""Bytes of a JSON file of a checkpoint."""


class Checkpoint(Protocol):
    """What says where a checkpoint is: the section of a network, or the record of a version."""

    @property
    def checkpoint(self) -> str:
        """A folder, or a hub id."""
        ...

    @property
    def revision(self) -> str | None:
        """Commit of the hub's repository; None: it is a folder."""
        ...


def package(name: str) -> Any:
    """Import a package of the extra `text`.

    Raises:
        SpecError: It is missing, or does not work with the others.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as e:
        reason = " ".join(str(e).split())
        raise SpecError(
            f"task.network.kind transformers: {name} cannot be imported ({reason}); pip install 'graceful-ai[text]',"
            " and the torchvision build of the same torch or none"
        ) from e


def folder(section: Checkpoint) -> Path:
    """Return the folder of a checkpoint; that of a hub repository is downloaded once, by transformers' own cache.

    Raises:
        DataError: No such folder, or the hub cannot be reached.
    """
    if section.revision is None:
        path = Path(section.checkpoint)
        if not path.is_dir():
            raise DataError(
                f"task.network.checkpoint: {path} is no folder; name a folder, or a hub id together with its revision"
            )
        return path
    hub = package("huggingface_hub")
    try:
        patterns = [CONFIG, TOKENIZER, "*.safetensors", "*.safetensors.index.json"]
        return Path(hub.snapshot_download(section.checkpoint, revision=section.revision, allow_patterns=patterns))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as e:
        reason = " ".join(str(e).split())[:200]
        raise DataError(
            f"task.network.checkpoint: {section.checkpoint} at {section.revision[:12]} cannot be had ({reason}); check"
            " the network and HF_TOKEN, or name a local folder"
        ) from e


def weight_files(place: Path) -> tuple[str, ...]:
    """Return the names of the files that hold the weights of a checkpoint: one, or an index and what it names.

    Raises:
        DataError: There are none, or the index is damaged.
    """
    if (place / WEIGHTS).is_file():
        return (WEIGHTS,)
    if not (place / INDEX).is_file():
        raise DataError(f"task.network.checkpoint: {place} has no {WEIGHTS}; save the weights as safetensors")
    parts = _json(place / INDEX).get("weight_map")
    names = sorted(set(parts.values())) if isinstance(parts, dict) else []
    if not names or not all((place / str(name)).is_file() for name in names):
        raise DataError(f"{place / INDEX}: names files that are not there; download the checkpoint again")
    return (INDEX, *names)


def described(section: Checkpoint) -> dict[str, Any]:
    """Return config.json and tokenizer.json of a checkpoint, by name.

    Raises:
        DataError: One is missing or damaged, or the checkpoint needs code of its own.
    """
    where = folder(section)
    files = {name: _json(where / name) for name in (CONFIG, TOKENIZER)}
    if "auto_map" in files[CONFIG]:
        raise DataError(
            f"{where / CONFIG}: the model needs code of its repository (auto_map), which graceful does not run; choose"
            " a model that transformers has itself"
        )
    return files


def safe_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without what names code to load: classes of a repository, and kernels of the hub.

    A version's configuration comes from a registry, whose writers may name anything there.

    Raises:
        DataError: The weights are quantised.
    """
    if config.get("quantization_config"):
        raise DataError("task.network.checkpoint: the weights are quantised; give a checkpoint in full precision")
    return {
        name: safe_config(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in _NAMES_CODE
    }


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"task.network.checkpoint: {path} is missing; save the model and its fast tokenizer there")
    if path.stat().st_size > LARGEST:
        raise DataError(f"{path}: more than {LARGEST} bytes; is it what its name says?")
    try:
        value = json.loads(storage.read_bytes(path))
    except ValueError as e:
        raise DataError(f"{path}: no JSON ({e}); download it again") from e
    if not isinstance(value, dict):
        raise DataError(f"{path}: must hold a mapping, got {type(value).__name__}; download it again")
    return value
