"""A task whose training rows are a stream of Hugging Face datasets: points of four classes, in several files' worth."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from graceful.models.base import Headed
from graceful.tasks.base import Samples
from graceful.tasks.streams import Stream

CENTRES = np.asarray([[2, 0], [0, 2], [-2, 0], [0, -2]], dtype=np.float32)


class Points:
    classes = ("east", "north", "west", "south")
    augments = False

    def __init__(self, length: int, rows: int, buffer: int, units: int) -> None:
        self.length, self.count, self.buffer, self.units = length, rows, buffer, units

    def table(self, seed: int, count: int) -> dict[str, list[Any]]:
        generator = np.random.default_rng(seed)
        labels = generator.integers(0, 4, size=count)
        points = CENTRES[labels] + generator.normal(size=(count, 2)).astype(np.float32)
        return {"id": [f"{seed}/{row}" for row in range(count)], "label": labels.tolist(), "point": points.tolist()}

    def rows(self, epoch: int, *, seed: int = 0, count: int | None = None) -> Any:
        from datasets import Dataset

        rows = Dataset.from_dict(self.table(seed, count or self.count)).to_iterable_dataset(num_shards=5)
        if self.buffer:
            rows = rows.shuffle(seed=0, buffer_size=self.buffer)
        rows.set_epoch(epoch)
        return rows

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        return Headed(nn.Sequential(nn.Linear(2, self.units), nn.ReLU()), nn.Linear(self.units, len(classes)))

    def samples(self, split: str) -> Samples | Stream:
        if split == "train":
            return Stream(
                rows=self.rows, length=self.length, classes=self.classes, digest=f"points {self.count}", item="point"
            )
        if split in ("query", "gallery"):
            raise KeyError(split)
        if split == "test":
            rows = partial(self.rows, seed=3, count=80)
            return Stream(rows=rows, length=80, classes=self.classes, digest="test", item="point")
        table = self.table({"validation": 1, "constraint": 2}[split], 80)
        items = np.asarray(table["point"], dtype=np.float32)
        return Samples.of(items, table["label"], classes=self.classes, ids=table["id"])

    def transform(self, items: Any, views: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(items, dtype=np.float32))


def task(length: int = 300, rows: int = 300, buffer: int = 0, units: int = 16) -> Points:
    return Points(length, rows, buffer, units)
