"""A task of your own around an image folder: EfficientNet-Lite0 in plain torch, from the weights that prepare.py wrote.

The network is Tan's EfficientNet-Lite0 (2020): inverted residuals without squeeze-and-excitation, ReLU6, and padding as
TensorFlow has it, for which the weights were trained.
"""

import math
from pathlib import Path

from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from graceful.models.heads import CosineHead
from graceful.spec import ImageFolderTask
from graceful.tasks.image_folder import ImageFolder

JOBS = Path(__file__).resolve().parents[1]
STAGES = (  # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
WIDTH = 1280


class SameConv(nn.Conv2d):
    """A convolution whose output has the size of its input divided by the stride, rounded up."""

    def forward(self, x):
        kernel, stride = self.kernel_size[0], self.stride[0]
        padding = []
        for size in (x.shape[3], x.shape[2]):
            whole = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            padding += [whole // 2, whole - whole // 2]
        return self._conv_forward(F.pad(x, padding), self.weight, self.bias)


def layer(inputs, outputs, kernel=1, stride=1, groups=1, *, activation=True):
    """Return convolution, batch normalisation and ReLU6."""
    convolution = SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False)
    parts = [convolution, nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)]
    return nn.Sequential(*parts, *([nn.ReLU6()] if activation else []))


class Block(nn.Module):
    """Expand, filter each channel, project; with a shortcut where the shape stays."""

    def __init__(self, inputs, outputs, kernel, stride, expansion):
        super().__init__()
        middle = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.expand = layer(inputs, middle) if expansion > 1 else nn.Identity()
        self.depthwise = layer(middle, middle, kernel, stride, groups=middle)
        self.project = layer(middle, outputs, activation=False)

    def forward(self, x):
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


def lite0():
    """Return the body: images [B, 3, H, W] -> [B, 1280]."""
    blocks, inputs = [], 32
    for count, kernel, stride, expansion, outputs in STAGES:
        for number in range(count):
            blocks.append(Block(inputs, outputs, kernel, stride if number == 0 else 1, expansion))
            inputs = outputs
    return nn.Sequential(
        layer(3, 32, 3, 2), nn.Sequential(*blocks), layer(inputs, WIDTH), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


class Lite0(nn.Module):
    """Body, projection and a cosine head; a frozen body keeps its running statistics."""

    def __init__(self, classes, *, embedding, frozen):
        super().__init__()
        self.embedding_size, self.frozen = embedding, frozen
        self.body = lite0().requires_grad_(not frozen)
        self.projection = nn.Linear(WIDTH, embedding)
        self.head = CosineHead(embedding, classes, scale=16.0)

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    def embed(self, x):
        return self.projection(self.body(x))

    def classify(self, embedding):
        return self.head(embedding)


class Things:
    """Class folders of images, decoded, cut and augmented as `image_folder` does, for a network of ours."""

    augments = True

    def __init__(self, images, *, embedding, frozen, weights):
        self.samples, self.transform, self.classes = images.samples, images.transform, images.classes
        self.options, self.weights = {"embedding": embedding, "frozen": frozen}, weights

    def network(self, classes):
        network = Lite0(len(classes), **self.options)
        network.body.load_state_dict(load_file(self.weights))
        return network


def task(*, size=64, frozen=True, embedding=128, share=1.0, root=None, weights=None):
    """Make the task.

    Args:
        size: Of the images, in pixels.
        frozen: Train projection and head alone.
        embedding: Numbers of an embedding.
        share: Of the training pictures.
        root: Folder of the pictures; None: those of jobs/emoji.
        weights: Safetensors of the body; None: what prepare.py wrote beside this file.
    """
    section = ImageFolderTask(
        root=str(root or JOBS / "emoji/images"), size=size, share=share, shift=size // 16, flip=True
    )
    return Things(
        ImageFolder(section), embedding=embedding, frozen=frozen, weights=weights or JOBS / "lite0/lite0.safetensors"
    )
