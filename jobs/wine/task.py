"""A task of your own: chemical analyses of wine, classified by cultivar with a small perceptron."""

import numpy as np
import torch
from sklearn.datasets import load_wine
from torch import nn

from graceful.models.base import Headed
from graceful.tasks import in_split
from graceful.tasks.base import Samples


class Wine:
    augments = False  # transform ignores views

    def __init__(self, width: int) -> None:
        table = load_wine()
        self.width, self.classes = width, tuple(map(str, table.target_names))
        self.items, self.labels = table.data.astype(np.float32), table.target
        self.ids = np.array([f"wine-{row}" for row in range(len(self.items))])

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        body = nn.Sequential(nn.Linear(13, self.width), nn.ReLU(), nn.Linear(self.width, 16))
        return Headed(body, nn.Linear(16, len(classes)))

    def samples(self, split: str) -> Samples:
        mine = in_split(self.ids, split)  # half train, a tenth validation and constraint, the rest test
        return Samples.of(self.items[mine], self.labels[mine], classes=self.classes, ids=self.ids[mine])

    def transform(self, items: np.ndarray, views: np.ndarray | None) -> torch.Tensor:
        return torch.from_numpy(np.log1p(items))


def task(width: int = 32) -> Wine:
    return Wine(width)
