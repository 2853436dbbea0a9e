"""Checkpoints of Hugging Face transformers: a folder, or a commit of a hub repository. Driver and workers.

Only safetensors and JSON are read; code that a checkpoint names is never run.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from graceful import storage
from graceful.errors import DataError, SpecError
from graceful.models import preprocessing
from graceful.models.preprocessing import Preprocessing
from graceful.spec.networks import Network, Pretrained, PretrainedImages, TransformersNetwork, ZooNetwork

CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
PROCESSOR = "preprocessor_config.json"
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
    """Import a package of the extras `text` and `vision`.

    Raises:
        SpecError: It is missing, or does not work with the others.
    """
    with working(name):
        return importlib.import_module(name)


@contextmanager
def working(name: str) -> Iterator[None]:
    """Turn into one line that a package cannot be imported; transformers imports parts of itself when they are used.

    Raises:
        SpecError: It is missing, or does not work with the others; why, and what to install.
    """
    try:
        yield
    except ImportError as e:
        raise _unusable(name, e) from e
    except RuntimeError as e:
        if "torchvision" not in str(e):
            raise
        raise _unusable(name, e) from e


def _unusable(name: str, error: BaseException) -> SpecError:
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    reason = " ".join(str(first).split())[:200]
    return SpecError(
        f"task.network.kind transformers: {name} cannot be imported ({reason}); pip install 'graceful-ai[text]', for"
        " images 'graceful-ai[vision]', and the torchvision build of the same torch or none"
    )


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
        patterns = [CONFIG, TOKENIZER, PROCESSOR, "*.safetensors", "*.safetensors.index.json"]
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


def described(
    section: Checkpoint, *, needed: Sequence[str] = (CONFIG, TOKENIZER), optional: Sequence[str] = ()
) -> dict[str, Any]:
    """Return JSON files of a checkpoint, by name; of the optional ones, those that it has.

    Raises:
        DataError: One is missing or damaged, or the checkpoint needs code of its own.
    """
    where = folder(section)
    files = {name: _json(where / name) for name in needed}
    files |= {name: _json(where / name) for name in optional if (where / name).is_file()}
    if "auto_map" in files[CONFIG]:
        raise DataError(
            f"{where / CONFIG}: the model needs code of its repository (auto_map), which graceful does not run; choose"
            " a model that transformers has itself"
        )
    return files


def described_zoo(section: ZooNetwork) -> dict[str, Any]:
    """Return config.json of a folder with weights for timm or torchvision; empty where it has none.

    Raises:
        DataError: The folder is missing, or the file is damaged.
    """
    if section.checkpoint is None:
        return {}
    if not Path(section.checkpoint).is_dir():
        raise DataError(f"task.network.checkpoint: {section.checkpoint} is no folder; name one with {WEIGHTS}")
    path = Path(section.checkpoint) / CONFIG
    return {CONFIG: _json(path)} if path.is_file() else {}


def numbers_of(section: Network | PretrainedImages, files: Mapping[str, Any]) -> Preprocessing:
    """Return how the images of a checkpoint were preprocessed; plain numbers where there is no checkpoint.

    Args:
        section: The network.
        files: JSON files of its checkpoint by name.

    Raises:
        DataError: A checkpoint with weights that does not say it, or numbers that no image can be made with.
    """
    where = str(Path(getattr(section, "checkpoint", None) or "."))
    if PROCESSOR in files:
        return preprocessing.of_transformers(files[PROCESSOR], where=f"{where}/{PROCESSOR}")
    timm = files.get(CONFIG, {}).get("pretrained_cfg")
    if isinstance(timm, Mapping):
        return preprocessing.of_timm(timm, where=f"{where}/{CONFIG}")
    if isinstance(section, Pretrained) and section.weights == "pretrained":
        name = PROCESSOR if isinstance(section, TransformersNetwork) else f"{CONFIG} with pretrained_cfg"
        raise DataError(
            f"task.network.checkpoint: {where} has no {name}, which says how images were scaled; save the image"
            " processor there"
        )
    return Preprocessing()


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
