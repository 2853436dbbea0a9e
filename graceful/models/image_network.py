"""A network of another package for images behind `embed` and `classify`. Driver and workers; packages load lazily."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graceful.errors import SpecError
from graceful.models import adapters, transformers_body, zoo
from graceful.models.base import CODE_FAULTS
from graceful.models.heads import head_of
from graceful.spec.networks import PretrainedImages, TransformersNetwork


class ImageNetwork(nn.Module):
    """Images [B, channels, size, size] -> embedding [B, d] -> logits [B, C].

    Parameters that the embedding does not depend on (a mask token, a pooler that is not used) are not trained, because
    workers would wait for their gradients. Batch normalisation in a frozen body keeps its running statistics.

    Args:
        section: Body, projection, head, and whether the body starts from the checkpoint's weights.
        config: The checkpoint's config.json; unused by torchvision.
        classes: C.
        channels: The channels of the images.
        size: The size of the images, in pixels.
        place: Returns the folder of the weights; called if they are needed.

    Attributes:
        base_names: Tensors of the state that a version with adapters does not keep, because the checkpoint has them.

    Raises:
        SpecError: The model cannot be built, or does not fit the images or the pooling.
        DataError: The checkpoint's weights are missing or damaged.
    """

    def __init__(
        self,
        section: PretrainedImages,
        config: Mapping[str, Any],
        *,
        classes: int,
        channels: int,
        size: int,
        place: Callable[[], Path],
    ) -> None:
        super().__init__()
        self.normalise, self._frozen = section.normalise, section.freeze == "body"
        self.base_names: frozenset[str] = frozenset()
        self.body: nn.Module
        if isinstance(section, TransformersNetwork):
            self.body, self.base_names = _transformer(section, dict(config), place, channels=channels, size=size)
        else:
            weights = place() if section.weights == "pretrained" else None
            self.body = zoo.body(section.kind, section.model, channels=channels, weights=weights)
        if self._frozen:
            self.body.requires_grad_(False)
        width = self._width(channels, size)
        self.projection = nn.Identity() if section.projection is None else nn.Linear(width, section.projection)
        self.embedding_size = section.projection or width
        self.head = head_of(section.head, self.embedding_size, classes, scale=section.scale)

    def embed(self, x: Tensor) -> Tensor:
        """Return the embeddings [B, d] of images, of length 1 if `normalise`."""
        embedding = self.projection(self.body(x))
        return F.normalize(embedding, dim=1) if self.normalise else cast(Tensor, embedding)

    def classify(self, embedding: Tensor) -> Tensor:
        """Return the logits [B, C] of embeddings [B, d]."""
        return cast(Tensor, self.head(embedding))

    def train(self, mode: bool = True) -> ImageNetwork:
        """Set the mode; a frozen body stays in that of evaluation."""
        super().train(mode)
        if self._frozen:
            self.body.eval()
        return self

    def _width(self, channels: int, size: int) -> int:
        """Return the length of what the body makes, and freeze what that does not depend on."""
        training = self.body.training
        self.body.eval()
        image = torch.zeros(1, channels, size, size)
        trained = [parameter for parameter in self.body.parameters() if parameter.requires_grad]
        try:
            with torch.enable_grad():
                pooled: Tensor = self.body(image)
                gradients = torch.autograd.grad(pooled.sum(), trained, allow_unused=True) if trained else ()
        except CODE_FAULTS as e:
            reason = " ".join(str(e).split())[:200]
            raise SpecError(
                f"task.network: the model fails on an image of {size} x {size} pixels ({reason}); give task.size the"
                " size that it was made for"
            ) from e
        used: tuple[Tensor | None, ...] = gradients
        for parameter, gradient in zip(trained, used, strict=True):
            if gradient is None:
                parameter.requires_grad_(False)
        self.body.train(training)
        return pooled.shape[1]


class PooledTransformer(nn.Module):
    """A model of transformers that makes one vector of each image.

    Args:
        model: With `last_hidden_state` [B, L, d] of class token and patches, or [B, d, H, W] of a convolutional one.
        pooling: mean, cls or map.
        size: The size of the images, in pixels.
    """

    def __init__(self, model: Any, *, pooling: str, size: int) -> None:
        super().__init__()
        self.model, self._pooling = model, pooling
        made_for = getattr(model.config, "image_size", None)
        scalable = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if scalable and made_for not in (None, size) else {}
        patch = getattr(model.config, "patch_size", None)
        self._patches = (size // patch) ** 2 if isinstance(patch, int) else None

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings [B, d] of images [B, channels, size, size]."""
        outputs = self.model(pixel_values=images, **self._options)
        hidden, pooled = outputs.last_hidden_state, getattr(outputs, "pooler_output", None)
        if hidden.dim() == 4 and self._pooling != "cls":
            return cast(Tensor, (hidden.mean((2, 3)) if pooled is None else pooled).flatten(1))
        if self._pooling == "map":
            if pooled is None:
                raise SpecError(f"task.network.pooling: {self._name} has no pooler; write mean or cls")
            return cast(Tensor, pooled.flatten(1))
        first = max(0, hidden.shape[1] - (self._patches or 0)) if hidden.dim() == 3 and self._patches else 0
        if self._pooling == "mean":
            return cast(Tensor, hidden[:, first:].mean(1))
        if first == 0:
            raise SpecError(f"task.network.pooling: {self._name} has no class token; write mean")
        return cast(Tensor, hidden[:, 0])

    @property
    def _name(self) -> str:
        return type(self.model).__name__


def _transformer(
    section: TransformersNetwork, config: dict[str, Any], place: Callable[[], Path], *, channels: int, size: int
) -> tuple[PooledTransformer, frozenset[str]]:
    """Return the body, and which tensors of the network a version does not keep."""
    model, absent = transformers_body.build(
        section, config, place=place, check=lambda chosen: _require_channels(chosen, channels)
    )
    if model.main_input_name != "pixel_values":
        raise SpecError(
            f"task.network.checkpoint: {type(model).__name__} reads {model.main_input_name}, no images alone; name"
            " a model for images"
        )
    transformers_body.freeze(model, section.freeze)
    names: frozenset[str] = frozenset()
    if section.peft is not None:
        adapters.adapt(model, section.peft)
        if section.weights == "pretrained":
            names = adapters.base_names(model, prefix="body.model.", absent=absent)
    return PooledTransformer(model, pooling=section.pooling, size=size), names


def _require_channels(config: Any, channels: int) -> None:
    wanted = getattr(config, "num_channels", channels)
    if wanted != channels:
        raise SpecError(f"task.channels: must be {wanted}, as the checkpoint reads, got {channels}")
