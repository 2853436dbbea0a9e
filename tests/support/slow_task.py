"""A task that takes its time without using the processor: steps long enough for something to go wrong in between."""

import time

import numpy as np
import torch
from torch import distributed, nn

from graceful.models.base import Headed
from graceful.tasks import in_split
from graceful.tasks.base import Samples


class Slow:
    augments = False

    def __init__(self, seconds: float, gigabytes: int) -> None:
        generator = np.random.default_rng(0)
        self.seconds, self.gigabytes, self.classes = seconds, gigabytes, ("left", "right")
        self.labels = generator.integers(0, 2, 400)
        self.items = (generator.normal(size=(400, 4)) + 3 * self.labels[:, None]).astype(np.float32)
        self.ids = np.array([f"point-{row}" for row in range(400)])

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        return Headed(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, len(classes)))

    def samples(self, split: str) -> Samples:
        mine = in_split(self.ids, split)
        return Samples.of(self.items[mine], self.labels[mine], classes=self.classes, ids=self.ids[mine])

    def transform(self, items: np.ndarray, views: np.ndarray | None) -> torch.Tensor:
        if len(items) == 8:  # a worker's share of a training batch
            time.sleep(self.seconds)
        if len(items) == 8 and distributed.is_initialized():  # in workers alone: the driver looks at eight samples, too
            hoard = [bytearray(2**30) for _ in range(self.gigabytes)]
            assert len(hoard) == self.gigabytes
        return torch.from_numpy(items)


def task(seconds: float = 0.1, gigabytes: int = 0) -> Slow:
    return Slow(seconds, gigabytes)
