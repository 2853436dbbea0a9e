"""The learner of texts: a tokenizer and a transformer, both kept with the version. Driver and workers; loads lazily."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graceful.errors import DataError
from graceful.learners.base import DEFAULT_ENCODER
from graceful.learners.batch import Batch
from graceful.learners.classifier import cross_entropy
from graceful.learners.words import without_some
from graceful.models import bases, checkpoints, packages
from graceful.models.base import Outputs, outputs_of
from graceful.spec.networks import TransformersNetwork
from graceful.spec.table import Columns, WordDropout

CONFIG, TOKENIZER = checkpoints.CONFIG, checkpoints.TOKENIZER
STEP = 8
"""Batches are padded to a multiple of so many tokens, so that few shapes occur."""


class TextLearner:
    """Tokenise texts, embed them with a transformer, classify the embedding, cross-entropy with the label.

    Args:
        columns: Which columns hold the texts.
        section: The network.
        kept: Configuration and tokenizer of a version that was restored; None: they come from the checkpoint.
        augment: How texts are changed where a view is asked for; None: they are not.
    """

    encoders: tuple[str, ...] = (DEFAULT_ENCODER,)

    def __init__(
        self,
        columns: Columns,
        section: TransformersNetwork,
        *,
        kept: Mapping[str, Any] | None = None,
        augment: WordDropout | None = None,
    ) -> None:
        self._columns, self._section, self._kept, self._augment = columns, section, kept, augment

    def collate(self, items: Any, views: NDArray[Any] | None) -> Batch:
        """Turn rows, or a list of texts (or of pairs of texts), into input_ids and attention_mask, [B, L] int64.

        L is the length of the longest text in tokens, at most `max_length`, rounded up to a multiple of 8.
        """
        texts = self._texts(items)
        if views is not None and self._augment is not None:
            share = self._augment.p
            texts = [without_some(text, share=share, view=int(view)) for text, view in zip(texts, views, strict=True)]
        encodings = self._tokenizer.encode_batch(texts)
        return {
            "input_ids": torch.tensor([encoding.ids for encoding in encodings], dtype=torch.int64),
            "attention_mask": torch.tensor([encoding.attention_mask for encoding in encodings], dtype=torch.int64),
            **self._segments(encodings),
        }

    def forward(self, network: nn.Module, batch: Batch, *, encoder: str) -> Outputs:
        """Implement `Learner.forward`; there is one encoder."""
        return outputs_of(network, batch)

    def task_loss(self, outputs: Outputs, batch: Batch, labels: Tensor) -> Tensor:
        """Return the cross-entropy of the logits."""
        return cross_entropy(outputs, batch, labels)

    def assets(self) -> Mapping[str, Any]:
        """Return the configuration of the transformer and its tokenizer, as its checkpoint has them; with adapters also
        which weights these belong to."""
        return dict(self._files)

    def restored(self, assets: Mapping[str, Any]) -> TextLearner:
        """Return the learner of the version that has this configuration and tokenizer."""
        return TextLearner(self._columns, self._section, kept=assets, augment=self._augment)

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        """Build the network: from the checkpoint, or with weights to be filled where the version was restored."""
        from graceful.models.text_network import TextNetwork

        section = self._section
        if self._kept is not None and bases.FILE not in self._kept:
            section = section.model_copy(update={"weights": "random"})
        return TextNetwork(
            section,
            self._files[CONFIG],
            classes=len(classes),
            place=lambda: bases.weights_of(self._section, self._files),
        )

    def cut(self, items: Any) -> int:
        """Return how many of some texts have more tokens than `max_length`, so that their ends are not read."""
        return sum(bool(encoding.overflowing) for encoding in self._tokenizer.encode_batch(self._texts(items)))

    @property
    def max_length(self) -> int:
        """Return how many tokens of a text are read."""
        return self._section.max_length

    @cached_property
    def _files(self) -> Mapping[str, Any]:
        if self._kept is not None:
            return self._kept
        base = {} if self._section.peft is None else {bases.FILE: bases.described(self._section)}
        return {**checkpoints.described(self._section), **base}

    @cached_property
    def _tokenizer(self) -> Any:
        """Return the tokenizer, which cuts and pads."""
        tokenizers = packages.package("tokenizers")
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(self._files[TOKENIZER]))
        tokenizer.enable_truncation(self._section.max_length)
        padding = self._files[CONFIG].get("pad_token_id") or 0
        tokenizer.enable_padding(pad_id=padding, pad_to_multiple_of=STEP)
        return tokenizer

    def _segments(self, encodings: Sequence[Any]) -> dict[str, Tensor]:
        """Return which of two texts a token belongs to, for transformers that learn it."""
        if self._columns.pair is None or self._files[CONFIG].get("type_vocab_size", 0) < 2:
            return {}
        return {"token_type_ids": torch.tensor([encoding.type_ids for encoding in encodings], dtype=torch.int64)}

    def _texts(self, items: Any) -> list[Any]:
        columns = self._columns
        if not hasattr(items, "column"):
            return [item if isinstance(item, str) else tuple(item) for item in items]
        texts = items.column(columns.text)
        if columns.pair is not None:
            texts = list(zip(texts, items.column(columns.pair), strict=True))
        for text in texts:
            if not isinstance(text, str | tuple):
                raise DataError(f"task.columns.text: column {columns.text!r} holds {text!r:.40}; must be text")
        return list(texts)
