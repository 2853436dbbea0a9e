"""Networks that a spec names, beside graceful's own small ones. Runs in every process."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from graceful.sections import Count, Positive, Section
from graceful.spec.adapters import Adapted

_REVISION = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class TransformersNetwork(Adapted):
    """A model of Hugging Face transformers for text, with a pooled embedding and a head on top."""

    kind: Literal["transformers"] = "transformers"
    checkpoint: str
    """A folder with config.json, tokenizer.json and model.safetensors, relative to the spec; or a hub id."""
    revision: str | None = None
    """Commit of the hub's repository, 40 hexadecimal digits, where `checkpoint` is a hub id; None: it is a folder."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """What the body starts from: the weights of the checkpoint, or random ones of the same shape."""
    layers: Count | None = None
    """Keep the first so many layers; None: all."""
    pooling: Literal["mean", "cls", "last"] = "mean"
    """How tokens become one embedding. mean: of all but padding; cls: the first; last: the last that is no padding."""
    max_length: Annotated[int, Field(ge=2, le=65_536)] = 128
    """Tokens of a text; longer ones are cut."""
    projection: Annotated[int, Field(ge=2, le=65_536)] | None = None
    """Length of a linear projection after pooling; None: the embedding is what was pooled."""
    normalise: bool = False
    """Bring embeddings to length 1."""
    head: Literal["linear", "cosine"] = "linear"
    """linear: weights and bias; cosine: normalised weights times `scale`, for retrieval."""
    scale: Positive = 16.0
    """Scale of the cosine head; unused by the linear one."""
    freeze: Literal["nothing", "embeddings", "body"] = "nothing"
    """Parameters that are not trained: none, the token embeddings, or everything below the projection and the head."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _adapts_a_checkpoint(self) -> TransformersNetwork:
        if self.peft is not None and self.weights == "random":
            raise ValueError("peft needs the weights of the checkpoint; leave out weights: random")
        if self.peft is not None and self.freeze != "nothing":
            raise ValueError(f"peft freezes all but its adapters; leave out freeze: {self.freeze}")
        return self

    @model_validator(mode="after")
    def _pinned(self) -> TransformersNetwork:
        if self.revision is None:
            return self
        if not _HUB_ID.fullmatch(self.checkpoint):
            raise ValueError(f"checkpoint must be a hub id such as owner/name with a revision, got {self.checkpoint!r}")
        if not _REVISION.fullmatch(self.revision):
            raise ValueError(
                f"revision must be a commit of 40 hexadecimal digits, because branches move; got {self.revision!r}"
            )
        return self


class Perceptron(Section):
    """Fully connected layers for numbers, which are standardised with mean and deviation of the training rows."""

    kind: Literal["perceptron"] = "perceptron"
    widths: tuple[Count, ...] = (64,)
    """Units of the hidden layers."""
    embedding: Annotated[int, Field(ge=2, le=4096)] = 32
    """Length of the embedding that galleries store."""
    head: Literal["linear", "cosine"] = "linear"
    """linear: weights and bias; cosine: normalised weights times `scale`, for retrieval."""
    scale: Positive = 16.0
    """Scale of the cosine head; unused by the linear one."""
