"""The body of a model of Hugging Face transformers, for text or images: built, filled, frozen. Driver and workers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from graceful.errors import DataError, SpecError
from graceful.models import checkpoints, packages
from graceful.spec.networks import TransformersNetwork


def build(
    section: TransformersNetwork, config: dict[str, Any], *, place: Callable[[], Path], check: Callable[[Any], None]
) -> tuple[Any, set[str]]:
    """Return the model of a checkpoint without a head, and the names of its parameters that have no weights there.

    Args:
        section: Which weights, how many layers.
        config: The checkpoint's config.json.
        place: Returns the folder of the weights; called if they are needed.
        check: Refuses a configuration that does not fit the data; it is called before anything is built.

    Raises:
        SpecError: transformers cannot build this model, or it has not what the section asks for.
        DataError: The checkpoint's weights are missing or damaged.
    """
    transformers = packages.package("transformers")
    try:
        with packages.working("transformers"):
            chosen = transformers.AutoConfig.for_model(**checkpoints.safe_config(config))
    except (KeyError, ValueError, TypeError) as e:
        raise SpecError(f"task.network.checkpoint: transformers cannot build this model ({_line(e)})") from e
    _require_layers(section, chosen)
    check(chosen)
    if section.layers is not None:
        chosen.num_hidden_layers = section.layers
    with packages.working("transformers"):
        if section.weights == "random":
            body, absent = transformers.AutoModel.from_config(chosen, trust_remote_code=False), set[str]()
        else:
            body, absent = _pretrained(transformers, place(), chosen)
    if section.gradient_checkpointing:
        _checkpoint_gradients(body)
    return body, absent


def freeze(body: Any, what: str) -> None:
    """Exclude parts of a body from training: nothing, its embeddings, or all of it.

    Raises:
        SpecError: A model without embeddings.
    """
    if what == "nothing":
        return
    try:
        part = body if what == "body" else body.get_input_embeddings()
    except NotImplementedError as e:
        raise SpecError(
            f"task.network.freeze: {type(body).__name__} has no embeddings to freeze; write nothing or body"
        ) from e
    part.requires_grad_(requires_grad=False)


def _checkpoint_gradients(body: Any) -> None:
    if not body.supports_gradient_checkpointing:
        raise SpecError(f"task.network.gradient_checkpointing: {type(body).__name__} cannot do that; leave it out")
    body.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _pretrained(transformers: Any, where: Path, config: Any) -> tuple[Any, set[str]]:
    log = importlib.import_module("transformers.utils.logging")
    verbosity = log.get_verbosity()
    log.set_verbosity_error()  # layers that are left out are meant
    log.disable_progress_bar()
    try:
        body, facts = transformers.AutoModel.from_pretrained(
            where,
            config=config,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as e:
        raise DataError(f"{where}: the weights cannot be loaded ({_line(e)}); give safetensors of this model") from e
    finally:
        log.set_verbosity(verbosity)
    return body, set(facts["missing_keys"])


def _require_layers(section: TransformersNetwork, config: Any) -> None:
    if section.layers is None:
        return
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int) or hasattr(config, "depths"):  # stages of several layers each
        raise SpecError(f"task.network.layers: {config.model_type} has stages, not layers to leave out; leave it out")
    if section.layers > layers:
        raise SpecError(f"task.network.layers: the checkpoint has {layers}, got {section.layers}; write fewer")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
