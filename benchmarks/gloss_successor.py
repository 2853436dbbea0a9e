"""A successor of MiniLM on glosses that can search its old gallery, trained by graceful on glosses of the gallery.

The body is MiniLM, frozen, so that its vectors are read instead of computed; what is trained is a residual layer behind
it, e = x + gelu(x W) V with V at zero first, and a cosine classifier of WordNet's families. v1 trains its classifier
alone, so that its embeddings are MiniLM's own. v2 trains the layer as well, with the losses of compatible training
against v1. The file is also the task that the specs name.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from graceful.models.base import Headed
from graceful.models.bundle_files import WEIGHTS
from graceful.models.heads import CosineHead
from graceful.tasks.base import Samples, Split

WIDTH, HIDDEN, SCALE = 384, 768, 16.0
HELD_OUT = 20
"""Every so many rows of the training glosses stand for the splits that a task must have; nothing is chosen on them."""


class Residual(nn.Module):
    """x + gelu(x W) V, at first x."""

    def __init__(self, *, trained: bool) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        self.requires_grad_(trained)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 384] to [B, 384]."""
        return x + self.outer(nn.functional.gelu(self.inner(x)))  # type: ignore[no-any-return]


class Families:
    """As `Task`: vectors of glosses by MiniLM, and the family of each.

    Args:
        file: `.npz` with ids, vectors and families.
        trained: Whether the residual layer is trained.
    """

    augments = False

    def __init__(self, file: str, *, trained: bool) -> None:
        with np.load(file) as arrays:
            self._ids, self._vectors, families = arrays["ids"], arrays["vectors"], arrays["families"]
        names, self._labels = np.unique(families, return_inverse=True)
        self.classes, self._trained = tuple(names.tolist()), trained

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        """Implement `Task.network`."""
        return Headed(Residual(trained=self._trained), CosineHead(WIDTH, len(classes), scale=SCALE))

    def samples(self, split: Split) -> Samples:
        """Implement `Task.samples`."""
        held_out = ("validation", "constraint", "test")
        place = np.arange(len(self._ids)) % HELD_OUT
        mine = place == held_out.index(split) if split in held_out else place >= len(held_out)
        return Samples.of(
            self._vectors[mine], self._labels[mine].astype(np.int64), classes=self.classes, ids=self._ids[mine]
        )

    def transform(self, items: NDArray[np.float32], views: NDArray[np.uint64] | None) -> Tensor:
        """Implement `Task.transform`."""
        return torch.from_numpy(np.ascontiguousarray(items))


def task(file: str, trained: bool = True) -> Families:
    """Return the task."""
    return Families(file, trained=trained)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How v2 is trained; chosen on validation glosses of another division, see `benchmarks.index_upgrade`.

    Attributes:
        epochs: Over the training glosses.
        lr: Of AdamW.
        influence, regression: Weights of the losses against v1.
    """

    epochs: int = 8
    lr: float = 1e-3
    influence: float = 1.0
    regression: float = 5.0

    @property
    def losses(self) -> list[dict[str, Any]]:
        """Return the losses as a spec has them."""
        weights = {"influence": self.influence, "embedding_regression": self.regression}
        return [{"kind": kind, "weight": weight} for kind, weight in weights.items() if weight]


@dataclass(frozen=True, kw_only=True, eq=False)
class Successor:
    """The trained layer.

    Attributes:
        arrays: W, its bias, V, its bias.
        seconds: CPU seconds of both trainings.
    """

    arrays: tuple[NDArray[np.float32], ...]
    seconds: float

    @property
    def numbers(self) -> int:
        """Return how many numbers it consists of."""
        return sum(array.size for array in self.arrays)

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the successor's vectors of glosses from MiniLM's, [N, 384]."""
        inner, inner_bias, outer, outer_bias = (torch.from_numpy(array) for array in self.arrays)
        x = torch.from_numpy(vectors)
        embedded: NDArray[np.float32] = (
            x + nn.functional.gelu(x @ inner.T + inner_bias) @ outer.T + outer_bias
        ).numpy()
        return embedded


def trained(
    ids: NDArray[np.str_], vectors: NDArray[np.float32], families: NDArray[np.str_], *, seed: int, recipe: Recipe
) -> Successor:
    """Train v1 and v2 and return v2.

    Args:
        ids: [N] of the training glosses.
        vectors: [N, 384] by MiniLM.
        families: [N] names.
        seed: Of both.
        recipe: Of v2.
    """
    from benchmarks import runs

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        np.savez(folder / "glosses.npz", ids=ids, vectors=vectors, families=families)
        options = {"file": str(folder / "glosses.npz")}
        seconds, bundles = 0.0, list[Path]()
        for name, train, compatibility in (
            ("v1", {"epochs": 2, "batch_size": 128, "optimizer": {"kind": "adamw", "lr": 1e-2}}, {}),
            (
                "v2",
                {"epochs": recipe.epochs, "batch_size": 128, "optimizer": {"kind": "adamw", "lr": recipe.lr}},
                {"losses": recipe.losses} if recipe.losses else {},
            ),
        ):
            section = {"kind": "python", "file": __file__, "options": {**options, "trained": name == "v2"}}
            spec = runs.refresh_spec(
                name, task=section, seed=seed + 10_000 * len(bundles), train=train, compatibility=compatibility
            )
            made, spent = runs.trained(spec, folder=folder / name, ancestors=bundles, task=runs.task_of(section))
            bundles, seconds = [made], seconds + spent
        state = load_file(bundles[0] / WEIGHTS)
        names = [f"body.{layer}.{part}" for layer in ("inner", "outer") for part in ("weight", "bias")]
        return Successor(arrays=tuple(state[name].numpy().copy() for name in names), seconds=seconds)
