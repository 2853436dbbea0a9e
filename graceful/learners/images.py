"""The learner of images for networks of other packages: the numbers of their preprocessing are kept with the version.

Driver and workers; Pillow and the packages load on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from graceful.learners.base import DEFAULT_ENCODER
from graceful.learners.classifier import cross_entropy
from graceful.models import bases, checkpoint_folders, checkpoints, preprocessing
from graceful.models.base import Outputs, outputs_of
from graceful.models.preprocessing import Preprocessing
from graceful.spec import ImageFolderTask, TableTask
from graceful.spec.networks import Network, PretrainedImages, TransformersNetwork
from graceful.tasks.augment import random_flip, random_shift
from graceful.tasks.image_batches import batch_of, grey, squares_of
from graceful.tasks.photos import Decode, Frame

CONFIG, NUMBERS = checkpoints.CONFIG, "preprocessing.json"
"""Files of a version: the configuration of its network, and the numbers of its preprocessing."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Settings of a task's section about images.

    Attributes:
        size: Side in pixels; None: as the checkpoint says.
        channels: 1: grey; 3: colour.
        decode: Whether large JPEGs may be decoded at a fraction of their size.
        shift: Largest random translation in training, in pixels.
        flip: Random horizontal flips in training.
    """

    size: int | None
    channels: int
    decode: Decode
    shift: int
    flip: bool


def options_of(section: ImageFolderTask | TableTask) -> ImageOptions:
    """Return the settings of a task's section about images."""
    return ImageOptions(
        size=section.size,
        channels=section.channels,
        decode=section.decode,
        shift=section.shift,
        flip=section.flip,
    )


class ImageLearner:
    """Decode images, cut and scale them as the network was trained, embed and classify, cross-entropy with the label.

    Args:
        section: The network.
        options: Settings of the task about images.
        column: Which column of rows holds the images; None: items are images.
        kept: Configuration and numbers of a version that was restored; None: they come from the checkpoint.
    """

    encoders: tuple[str, ...] = (DEFAULT_ENCODER,)

    def __init__(
        self,
        section: Network | PretrainedImages,
        options: ImageOptions,
        *,
        column: str | None = None,
        kept: Mapping[str, Any] | None = None,
    ) -> None:
        self._section, self._options, self._column, self._kept = section, options, column, kept

    @property
    def augments(self) -> bool:
        """Whether `collate` with views differs from without."""
        return self._options.shift > 0 or self._options.flip

    @property
    def frame(self) -> Frame:
        """How an image becomes a square."""
        return self._numbers.frame(self._options.decode)

    def collate(self, items: Any, views: NDArray[np.uint64] | None) -> Tensor:
        """Photos, Pillow's images, arrays of bytes, or rows -> float32 [B, channels, size, size].

        With views they are augmented.
        """
        if self._column is not None and hasattr(items, "photos"):
            items = items.photos(self._column, self.frame)
        squares: Any = squares_of(items, self.frame)
        if views is not None and self.augments:
            squares = random_shift(np.stack(squares), views, self._options.shift, fill="edge")
            if self._options.flip:
                squares = random_flip(squares, views)
        if self._options.channels == 1:
            squares = [grey(square) for square in squares]
        return batch_of(squares, self._scale())

    def _scale(self) -> Callable[[NDArray[np.float32]], None]:
        """Return what brings the bytes of one image, [C, H, W], to the numbers that the network was trained with."""
        numbers, channels = self._numbers, self._options.channels
        mean, deviation = (
            np.asarray(values[:channels], dtype=np.float32)[:, None, None]
            for values in (numbers.mean, numbers.deviation)
        )

        def scale(image: NDArray[np.float32]) -> None:
            image *= numbers.factor
            image -= mean
            image /= deviation

        return scale

    def forward(self, network: nn.Module, batch: Any, *, encoder: str) -> Outputs:
        """As `Learner.forward`; there is one encoder."""
        return outputs_of(network, batch)

    def task_loss(self, outputs: Outputs, batch: Any, labels: Tensor) -> Tensor:
        """Cross-entropy of the logits."""
        return cross_entropy(outputs, batch, labels)

    def assets(self) -> Mapping[str, Any]:
        """Return the configuration of the network and the numbers of its preprocessing; with adapters also which
        weights these belong to."""
        named = {name: self._files[name] for name in (CONFIG, bases.FILE) if name in self._files}
        return {NUMBERS: self._numbers.document(), **named}

    def restored(self, assets: Mapping[str, Any]) -> ImageLearner:
        """Return the learner of the version that has this configuration and these numbers."""
        return ImageLearner(self._section, self._options, column=self._column, kept=assets)

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        """Build the network: from the checkpoint, or with weights to be filled where the version was restored."""
        section, channels, size = self._section, self._options.channels, self._numbers.size
        if isinstance(section, Network):
            from graceful import models

            return models.build(section, classes=len(classes), input_shape=(channels, size, size))
        from graceful.models.image_network import ImageNetwork

        if self._kept is not None and bases.FILE not in self._kept:
            section = section.model_copy(update={"weights": "random"})
        config = self._files.get(CONFIG, {})
        return ImageNetwork(section, config, classes=len(classes), channels=channels, size=size, place=self._weights)

    def _weights(self) -> Path:
        """Return the folder of the weights that a network starts from."""
        if isinstance(self._section, TransformersNetwork):
            return bases.weights_of(self._section, self._files)
        return checkpoint_folders.folder_of(str(getattr(self._section, "checkpoint", None) or "."))

    @cached_property
    def _files(self) -> Mapping[str, Any]:
        """Return the files of the checkpoint by name, as far as it has them, or those of the version."""
        section = self._section
        if self._kept is not None:
            return self._kept
        if isinstance(section, TransformersNetwork):
            base = {} if section.peft is None else {bases.FILE: bases.described(section)}
            return {**checkpoints.described(section, needed=(CONFIG,), optional=(checkpoints.PROCESSOR,)), **base}
        return {} if isinstance(section, Network) else checkpoints.described_zoo(section)

    @cached_property
    def _numbers(self) -> Preprocessing:
        if self._kept is not None:
            return preprocessing.read(self._kept.get(NUMBERS), where=NUMBERS)
        numbers = checkpoints.numbers_of(self._section, self._files)
        return numbers if self._options.size is None else replace(numbers, size=self._options.size)
