"""Pictures of jobs/emoji as EfficientNet-Lite0 sees them below its last convolution, for few-shot benchmarks.

First: python jobs/emoji/prepare.py; python jobs/lite0/prepare.py. The body is run once, at 64 pixels; what is trained
is its last convolution with normalisation and activation, from the pretrained weights, and a new head. The classes are
five groups of things, so that 20 pictures of each are few: a group has five to nine kinds of things.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from graceful import spec
from graceful.lqf.activations import make_leaky
from graceful.tasks.image_folder import ImageFolder

JOBS = Path(__file__).resolve().parents[1] / "jobs"
GROUPS = {
    "animals": (
        "bear-face",
        "cat-face",
        "cow-face",
        "dog-face",
        "fox-face",
        "frog-face",
        "koala",
        "lion-face",
        "panda-face",
    ),
    "vehicles": ("ambulance", "automobile", "bus", "delivery-truck", "fire-engine", "police-car", "tractor", "bicycle"),
    "food": ("banana", "bread", "carrot", "grapes", "hamburger", "hot-dog", "peach", "pineapple", "red-apple"),
    "music": ("drum-with-drumsticks", "guitar", "musical-keyboard", "trumpet", "violin"),
    "sports": ("american-football", "basketball-and-hoop", "bowling", "direct-hit", "soccer-ball", "game-die"),
}
SIZE, TRAIN = 64, 150
"""Pixels, and pictures of each group that shots are drawn from."""


class Top(nn.Module):
    """The last convolution of Lite0, its pooling, a head."""

    def __init__(self, layer: nn.Module, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(1280, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Map features below to embedding."""
        embedding: Tensor = self.body(x)
        return embedding

    def classify(self, embedding: Tensor) -> Tensor:
        """Map embedding to logits."""
        logits: Tensor = self.head(embedding)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Map features below to logits."""
        return self.classify(self.embed(x))


def _task() -> ModuleType:
    path = JOBS / "lite0" / "task.py"
    found = importlib.util.spec_from_file_location("lite0_task", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _lite0() -> nn.Sequential:
    network: nn.Sequential = _task().lite0()
    network.load_state_dict(load_file(JOBS / "lite0" / "lite0.safetensors"))
    return network.eval()


def top(*, slope: float) -> Top:
    """Return the part that is trained, at its pretrained weights."""
    torch.manual_seed(0)
    network = Top(_lite0()[2], len(GROUPS))
    make_leaky(network, slope)
    return network


@torch.no_grad()
def splits() -> tuple[tuple[Tensor, Tensor], ...]:
    """Return features and labels of train, validation and test."""
    below = nn.Sequential(*_lite0()[:2])
    images = ImageFolder(spec.ImageFolderTask(root=str(JOBS / "emoji" / "images"), size=SIZE))
    found = []
    for split in ("train", "validation", "test"):
        samples = images.samples(split)  # type: ignore[arg-type]
        names = np.asarray(samples.classes)[samples.labels]
        rows, labels = [], []
        for label, things in enumerate(GROUPS.values()):
            own = np.flatnonzero(np.isin(names, things))
            own = own[np.random.default_rng(0).permutation(len(own))][: TRAIN if split == "train" else None]
            rows += own.tolist()
            labels += [label] * len(own)
        parts = [
            below(torch.as_tensor(images.transform(samples.read(np.asarray(rows[at : at + 64])), None)))
            for at in range(0, len(rows), 64)
        ]
        found.append((torch.cat(parts), torch.tensor(labels)))
    return tuple(found)
