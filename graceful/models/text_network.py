"""A transformer for text behind `embed` and `classify`: pooling, an optional projection, a head. Driver and workers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from graceful.errors import DataError, SpecError
from graceful.models import adapters, checkpoints
from graceful.models.heads import head_of
from graceful.spec.networks import TransformersNetwork


class TextNetwork(nn.Module):
    """Batch {input_ids, attention_mask} -> embedding [B, d] -> logits [B, C].

    Args:
        section: Pooling, projection, head, adapters, and whether the body starts from the checkpoint's weights.
        config: The checkpoint's config.json.
        classes: C.
        place: Returns the folder of the weights; called if they are needed.

    Attributes:
        base_names: Tensors of the state that a version with adapters does not keep, because the checkpoint has them.

    Raises:
        SpecError: More layers than the checkpoint has, or longer texts than it can read.
        DataError: The checkpoint's weights are missing or damaged.
    """

    def __init__(
        self, section: TransformersNetwork, config: dict[str, Any], *, classes: int, place: Callable[[], Path]
    ) -> None:
        super().__init__()
        self.pooling, self.normalise = section.pooling, section.normalise
        self.body, absent = _body(section, config, place)
        width = int(self.body.config.hidden_size)
        self.projection = nn.Identity() if section.projection is None else nn.Linear(width, section.projection)
        self.embedding_size = section.projection or width
        self.head = head_of(section.head, self.embedding_size, classes, scale=section.scale)
        _freeze(self.body, section.freeze)
        self.base_names: frozenset[str] = frozenset()
        if section.peft is not None:
            adapters.adapt(self.body, section.peft)
            if section.weights == "pretrained":
                self.base_names = adapters.base_names(self.body, prefix="body.", absent=absent)

    def embed(self, x: dict[str, Tensor]) -> Tensor:
        """Batch of the text learner -> embedding [B, d], of length 1 if `normalise`."""
        tokens = self.body(**x).last_hidden_state
        embedding = self.projection(pool(tokens, x["attention_mask"], self.pooling))
        return F.normalize(embedding, dim=1) if self.normalise else cast(Tensor, embedding)

    def classify(self, embedding: Tensor) -> Tensor:
        """Embedding [B, d] -> logits [B, C]."""
        return cast(Tensor, self.head(embedding))


def pool(tokens: Tensor, mask: Tensor, how: str) -> Tensor:
    """Return one vector for each text, [B, d].

    Args:
        tokens: [B, L, d].
        mask: [B, L]; 0 where a token is padding. Texts are padded on the right.
        how: mean, cls (the first token) or last (the last token that is no padding).
    """
    if how == "cls":
        return tokens[:, 0]
    if how == "last":
        return tokens[torch.arange(len(tokens), device=tokens.device), mask.sum(1) - 1]
    weights = mask.unsqueeze(2).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def _body(section: TransformersNetwork, config: dict[str, Any], place: Callable[[], Path]) -> tuple[Any, set[str]]:
    """Return the transformer, and the names of its parameters that the checkpoint has no weights for."""
    transformers = checkpoints.package("transformers")
    try:
        chosen = transformers.AutoConfig.for_model(**checkpoints.safe_config(config))
    except (KeyError, ValueError, TypeError) as e:
        reason = " ".join(str(e).split())[:200]
        raise SpecError(f"task.network.checkpoint: transformers cannot build this model ({reason})") from e
    _require_fit(section, chosen)
    if section.layers is not None:
        chosen.num_hidden_layers = section.layers
    absent: set[str] = set()
    if section.weights == "random":
        body = transformers.AutoModel.from_config(chosen, trust_remote_code=False)
    else:
        body, absent = _pretrained(transformers, place(), chosen)
    if getattr(body, "pooler", None) is not None:
        body.pooler = None  # its parameters would never be trained
    if section.gradient_checkpointing:
        body.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return body, absent


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
        reason = " ".join(str(e).split())[:200]
        raise DataError(f"{where}: the weights cannot be loaded ({reason}); give safetensors of this model") from e
    finally:
        log.set_verbosity(verbosity)
    return body, set(facts["missing_keys"])


def _require_fit(section: TransformersNetwork, config: Any) -> None:
    layers, longest = config.num_hidden_layers, getattr(config, "max_position_embeddings", None)
    if section.layers is not None and section.layers > layers:
        raise SpecError(f"task.network.layers: the checkpoint has {layers}, got {section.layers}; write fewer")
    if longest is not None and section.max_length > longest:
        raise SpecError(
            f"task.network.max_length: must be at most {longest}, as the checkpoint can read, got {section.max_length}"
        )


def _freeze(body: Any, what: str) -> None:
    parts = {"nothing": [], "embeddings": [body.get_input_embeddings()], "body": [body]}[what]
    for part in parts:
        part.requires_grad_(requires_grad=False)
