"""Networks that a spec names: graceful's own small ones, and those of other packages. Runs in every process."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from graceful import addresses
from graceful.sections import Count, Positive, Section
from graceful.spec.adapters import Adapted
from graceful.spec.stages import StagedNetwork

_REVISION = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def _place(checkpoint: str) -> str:
    """Return a folder, an address of a bucket in one spelling, or a hub id.

    Raises:
        ValueError: An address of another kind.
    """
    if addresses.has_other_scheme(checkpoint):
        raise ValueError(f"must be a folder, s3://bucket/prefix/ or a hub id, got {checkpoint}")
    return addresses.in_document(checkpoint) if addresses.is_remote(checkpoint) else checkpoint


Place = Annotated[str, AfterValidator(_place)]


class Network(Section):
    """One of graceful's own small networks for images."""

    kind: Annotated[Literal["small"], Field(exclude_if=lambda kind: kind == "small")] = "small"
    size: Literal["xs", "s2", "m"] = "xs"
    """xs: two convolutions of 6 and 12 channels; s2: 12 and 24; m: 24 and 48."""
    embedding: Annotated[int, Field(ge=2, le=4096)] = 64
    """Length of the embedding that galleries store."""
    head: Literal["linear", "cosine"] = "linear"
    """linear: weights and bias; cosine: normalised weights times `scale`, for retrieval."""
    scale: Positive = 16.0
    """Scale of the cosine head; unused by the linear one."""


class Pretrained(Section):
    """What networks of other packages have in common: a body, an optional projection, a head."""

    kind: str
    weights: Literal["pretrained", "random"] = "pretrained"
    """What the body starts from: the weights of the checkpoint, or random ones of the same shape."""
    projection: Annotated[int, Field(ge=2, le=65_536)] | None = None
    """Length of a linear projection after pooling; None: the embedding is what was pooled."""
    normalise: bool = False
    """Bring embeddings to length 1."""
    head: Literal["linear", "cosine"] = "linear"
    """linear: weights and bias; cosine: normalised weights times `scale`, for retrieval."""
    scale: Positive = 16.0
    """Scale of the cosine head; unused by the linear one."""
    freeze: Literal["nothing", "embeddings", "body"] = "nothing"
    """Parameters that are not trained: none, the embeddings of tokens or patches, or everything below the projection
    and the head."""


class TransformersNetwork(Adapted, Pretrained):
    """A model of Hugging Face transformers for text or images, with a pooled embedding and a head on top."""

    kind: Literal["transformers"] = "transformers"
    checkpoint: Place
    """A folder with config.json, model.safetensors and, for text, tokenizer.json, for images,
    preprocessor_config.json, relative to the spec; or s3://bucket/prefix/ with these files; or a hub id."""
    revision: str | None = None
    """Commit of the hub's repository, 40 hexadecimal digits, where `checkpoint` is a hub id; None: it is a folder."""
    layers: Count | None = None
    """Keep the first so many layers; None: all."""
    pooling: Literal["mean", "cls", "last", "map"] = "mean"
    """How an embedding is made. mean: of all tokens but padding, of all patches, or over the map of a convolutional
    network; cls: the first token; last: the last token that is not padding, for text; map: what the model's own pooler
    gives, for images."""
    max_length: Annotated[int, Field(ge=2, le=65_536)] = 128
    """Tokens of a text; longer ones are cut. Unused for images."""
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


class ZooNetwork(Pretrained):
    """What networks of timm and torchvision have in common."""

    model: str
    """Name of the model, as the package has it."""
    checkpoint: Place | None = None
    """A folder with model.safetensors and, of timm's hub, config.json, relative to the spec, or s3://bucket/prefix/
    with these files; None: random weights."""
    weights: Literal["pretrained", "random"] = "random"
    """What the body starts from: the weights of the checkpoint, or random ones."""

    @model_validator(mode="after")
    def _has_weights(self) -> ZooNetwork:
        if self.weights == "pretrained" and self.checkpoint is None:
            raise ValueError("weights: pretrained needs a checkpoint; name a folder with model.safetensors")
        if self.freeze == "embeddings":
            raise ValueError("freeze: embeddings is for models of transformers; write nothing or body")
        return self


class TimmNetwork(ZooNetwork):
    """A model of timm for images, with a head on top."""

    kind: Literal["timm"] = "timm"


class TorchvisionNetwork(ZooNetwork):
    """A classification model of torchvision for images, with another head on top."""

    kind: Literal["torchvision"] = "torchvision"


PretrainedImages = TransformersNetwork | TimmNetwork | TorchvisionNetwork
"""Networks of other packages for images."""


def is_pretrained(values: Any) -> bool:
    """Return whether a task that is not validated yet names a network of another package."""
    network = values.get("network") if isinstance(values, Mapping) else None
    return isinstance(network, Pretrained) or (
        isinstance(network, Mapping) and network.get("kind") in ("transformers", "timm", "torchvision")
    )


def require_image_network(network: Network | StagedNetwork | PretrainedImages, *, size: int | None) -> None:
    """Refuse what a network cannot do with images.

    Raises:
        ValueError: No size for a small network, or pooling that is for text.
    """
    if isinstance(network, Network | StagedNetwork) and size is None:
        raise ValueError("size must be a number of pixels for a small network; write size: 64")
    if isinstance(network, TransformersNetwork) and network.pooling == "last":
        raise ValueError("network.pooling: last is for text; write mean, cls or map for images")


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


def require_fitting(
    network: Network | PretrainedImages | Perceptron,
    *,
    section: Literal["columns", "members"],
    embedded: Collection[str],
    size: int | None,
    shift: int,
    flip: bool,
    augments_text: bool,
) -> None:
    """Refuse a network that does not read what is embedded, and augmentation of something else.

    Args:
        network: As it is written.
        section: Which key of the task names what is embedded.
        embedded: Keys of that section: text, image, features, categories.
        size: Pixels of an image's side.
        shift: Pixels by which images are moved.
        flip: Whether images are mirrored.
        augments_text: Whether texts are.

    Raises:
        ValueError: With the key, and what to write.
    """
    for key in embedded:
        if key in ("features", "categories") and not isinstance(network, Perceptron):
            raise ValueError(f"{section}.{key} needs network: {{kind: perceptron}}")
        if key == "text" and getattr(network, "pooling", None) == "map":
            raise ValueError("network.pooling: map is for images; write mean, cls or last for text")
        if key == "text" and network.kind != "transformers":
            raise ValueError(
                f"{section}.text needs a network for text; write network: {{kind: transformers, checkpoint: FOLDER}}"
            )
        if key == "image":
            if isinstance(network, Perceptron):
                raise ValueError(f"{section}.image needs a network for images; write network: {{kind: small}}")
            require_image_network(network, size=size)
    if augments_text and "text" not in embedded:
        raise ValueError("augment is for texts; leave it out")
    if (shift or flip) and "image" not in embedded:
        raise ValueError("shift and flip are for images; leave them out")
    if size is not None and shift >= size:
        raise ValueError(f"shift must be less than size = {size} pixels, got {shift}; write {size // 8}")
