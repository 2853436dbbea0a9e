"""A transformer for text behind `embed` and `classify`: pooling, an optional projection, a head. Driver and workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graceful.errors import SpecError
from graceful.models import adapters, transformers_body
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
        self.body, absent = transformers_body.build(
            section, config, place=place, check=lambda chosen: _require_short(section, chosen)
        )
        if getattr(self.body, "pooler", None) is not None:
            self.body.pooler = None  # its parameters would never be trained
        width = int(self.body.config.hidden_size)
        self.projection = nn.Identity() if section.projection is None else nn.Linear(width, section.projection)
        self.embedding_size = section.projection or width
        self.head = head_of(section.head, self.embedding_size, classes, scale=section.scale)
        transformers_body.freeze(self.body, section.freeze)
        self.base_names: frozenset[str] = frozenset()
        if section.peft is not None:
            adapters.adapt(self.body, section.peft)
            if section.weights == "pretrained":
                self.base_names = adapters.base_names(self.body, prefix="body.", absent=absent)

    def embed(self, x: dict[str, Tensor]) -> Tensor:
        """Return the embeddings [B, d] of a batch of the text learner, of length 1 if `normalise`."""
        tokens = self.body(**x).last_hidden_state
        embedding = self.projection(pool(tokens, x["attention_mask"], self.pooling))
        return F.normalize(embedding, dim=1) if self.normalise else cast(Tensor, embedding)

    def classify(self, embedding: Tensor) -> Tensor:
        """Return the logits [B, C] of embeddings [B, d]."""
        return cast(Tensor, self.head(embedding))


def pool(tokens: Tensor, mask: Tensor, how: str) -> Tensor:
    """Return one vector for each text, [B, d].

    Args:
        tokens: [B, L, d].
        mask: [B, L]; 0 where a token is padding. Texts are padded on the right.
        how: mean, cls (the first token) or last (the last token that is not padding).
    """
    if how == "cls":
        return tokens[:, 0]
    if how == "last":
        return tokens[torch.arange(len(tokens), device=tokens.device), mask.sum(1) - 1]
    weights = mask.unsqueeze(2).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def _require_short(section: TransformersNetwork, config: Any) -> None:
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and section.max_length > longest:
        raise SpecError(
            f"task.network.max_length: must be at most {longest}, as the checkpoint can read, got {section.max_length}"
        )
