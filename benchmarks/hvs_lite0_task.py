"""The task of `benchmarks.hvs_lite0`: pictures in memory, EfficientNet-Lite0 or a small network of stages."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from graceful import models
from graceful.spec.stages import StagedNetwork
from graceful.tasks.base import Samples

KINDS = {"test": "learned gallery", "query": "unseen query", "gallery": "unseen gallery"}
"""Which pictures a split of the protocol is, where its name does not say it."""


@lru_cache(maxsize=1)
def opened(path: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of things.npz."""
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def lite0_job(jobs: str) -> ModuleType:
    """Return jobs/lite0/task.py."""
    found = importlib.util.spec_from_file_location("lite0_task", Path(jobs) / "lite0" / "task.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


class Things:
    """Pictures of things; classes are the things that are learned."""

    augments = False

    def __init__(self, data: str, jobs: str, network: dict[str, Any] | None, *, embedding: int, frozen: bool) -> None:
        self.data, self.jobs, self.section, self.embedding, self.frozen = data, jobs, network, embedding, frozen
        arrays = opened(data)
        self.classes = tuple(arrays["names"][np.unique(arrays["train labels"])].tolist())

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        """Build Lite0 with its pretrained body, or the network of stages."""
        if self.section is None:
            job = lite0_job(self.jobs)
            network: nn.Module = job.Lite0(len(classes), embedding=self.embedding, frozen=self.frozen)
            network.get_submodule("body").load_state_dict(load_file(Path(self.jobs) / "lite0" / "lite0.safetensors"))
            return network
        section = StagedNetwork.model_validate(self.section)
        return models.build(section, classes=len(classes), input_shape=(3, 64, 64))

    def samples(self, split: str) -> Samples:
        """Open a split of the protocol."""
        if split not in ("train", "validation", *KINDS):
            raise KeyError(split)
        return self.pictures(KINDS.get(split, split))

    def pictures(self, kind: str) -> Samples:
        """Return e.g. `unseen query`; the groups are the things."""
        arrays = opened(self.data)
        labels = arrays[f"{kind} labels"]
        present = np.unique(labels)
        classes = arrays["names"][present]
        return Samples.of(
            arrays[f"{kind} images"],
            np.searchsorted(present, labels),
            classes=classes.tolist(),
            ids=arrays[f"{kind} ids"],
            groups=arrays["names"][labels],
        )

    def transform(self, items: NDArray[np.uint8], views: NDArray[np.uint64] | None) -> Tensor:
        """Return the bytes [B, 64, 64, 3] -> float32 [B, 3, 64, 64] from -1 to 1, for which the weights were
        trained."""
        images = torch.from_numpy(np.ascontiguousarray(items)).permute(0, 3, 1, 2).contiguous()
        return images.float() / 127.5 - 1.0


def task(
    *, data: str, jobs: str, network: dict[str, Any] | None = None, embedding: int = 128, frozen: bool = True
) -> Things:
    """Make the task.

    Args:
        data: things.npz.
        jobs: Folder of jobs.
        network: Of stages; None: Lite0.
        embedding: Numbers of Lite0's embedding.
        frozen: Train projection and head of Lite0 alone.
    """
    return Things(data, jobs, network, embedding=embedding, frozen=frozen)
