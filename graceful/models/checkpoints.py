"""Configurations of Hugging Face checkpoints, and which of their files hold weights. Driver and workers.

Only safetensors and JSON are read; code that a checkpoint names is never run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graceful.errors import DataError
from graceful.models import preprocessing
from graceful.models.checkpoint_folders import Checkpoint, folder, folder_of, read_json
from graceful.models.preprocessing import Preprocessing
from graceful.spec.networks import Network, Pretrained, PretrainedImages, TransformersNetwork, ZooNetwork

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
PROCESSOR = "preprocessor_config.json"
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


def described(
    section: Checkpoint, *, needed: Sequence[str] = (CONFIG, TOKENIZER), optional: Sequence[str] = ()
) -> dict[str, Any]:
    """Return JSON files of a checkpoint, by name; of the optional ones, those that it has.

    Raises:
        DataError: One is missing or damaged, or the checkpoint needs code of its own.
    """
    where = folder(section)
    files = {name: read_json(where / name) for name in needed}
    files |= {name: read_json(where / name) for name in optional if (where / name).is_file()}
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
    path = folder_of(section.checkpoint) / CONFIG
    return {CONFIG: read_json(path)} if path.is_file() else {}


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
