"""A map from one embedding space into another, as arrays: an affine map, and for `mlp` a correction of it. NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError

Kind = Literal["procrustes", "low_rank", "mlp"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Floats = NDArray[np.float64]

SHAPES: Mapping[Kind, Mapping[str, str]] = {
    "procrustes": {"weight": "ab", "bias": "b"},
    "low_rank": {"left": "ar", "right": "rb", "bias": "b"},
    "mlp": {"weight": "ab", "bias": "b", "hidden": "ah", "hidden_bias": "h", "output": "hb"},
}
"""Kind -> the arrays that it consists of, with a letter for the length of each axis: a of the source, b of the target,
r the rank, h the width of the hidden layer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Map:
    """x [N, a] -> unit(unit(x) weight + bias), where weight is left right for `low_rank`, and `mlp` adds
    gelu(unit(x) hidden + hidden_bias) output before the last normalisation.

    Attributes:
        kind: How it was fitted.
        arrays: By name, float32, with the axes of `SHAPES`.
    """

    kind: Kind
    arrays: Mapping[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        expected, lengths = SHAPES[self.kind], dict[str, int]()
        shapes = {name: list(array.shape) for name, array in self.arrays.items()}
        fitting = shapes.keys() == expected.keys() and all(
            len(shape) == len(expected[name])
            and all(lengths.setdefault(axis, size) == size for axis, size in zip(expected[name], shape, strict=True))
            for name, shape in shapes.items()
        )
        if not fitting or 0 in lengths.values():
            raise DataError(
                f"adapter: a {self.kind} consists of {', '.join(expected)} that fit each other, got {shapes}"
            )
        if not all(np.isfinite(array).all() for array in self.arrays.values()):
            raise DataError("adapter: an array holds NaN or infinity; fit it again")

    @property
    def source(self) -> int:
        """Return the length of the vectors that the map takes."""
        return int(self.arrays["left" if self.kind == "low_rank" else "weight"].shape[0])

    @property
    def target(self) -> int:
        """Return the length of the vectors that the map returns."""
        return int(self.arrays["bias"].shape[0])

    @property
    def numbers(self) -> int:
        """Return how many numbers the map consists of."""
        return sum(array.size for array in self.arrays.values())

    def __call__(self, vectors: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Map vectors, [N, a] -> [N, b] of length 1; rows that are not finite stay so.

        Raises:
            DataError: Vectors of another length.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.source:
            raise DataError(
                f"adapter: maps vectors of {self.source} numbers, got shape {list(vectors.shape)}; these are of another"
                " model"
            )
        x = unit(vectors).astype(np.float32)
        part = self.arrays
        low_rank = self.kind == "low_rank"
        mapped = ((x @ part["left"]) @ part["right"] if low_rank else x @ part["weight"]) + part["bias"]
        if self.kind == "mlp":
            mapped += gelu(x @ part["hidden"] + part["hidden_bias"]) @ part["output"]
        return unit(mapped).astype(np.float32)


def rounded(kind: Kind, **arrays: NDArray[Any]) -> Map:
    """Return a map of arrays in any precision, rounded to float32."""
    return Map(kind=kind, arrays={name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()})


def unit(vectors: NDArray[np.floating[Any]]) -> Floats:
    """Return rows of length 1 in double precision; rows of zeros stay zeros."""
    wide = np.asarray(vectors, dtype=np.float64)
    length = np.sqrt((wide**2).sum(axis=1, keepdims=True))
    return np.asarray(wide / np.where(length == 0.0, 1.0, length))


def gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return x times the normal distribution's share below x, by the approximation with tanh."""
    return np.asarray(0.5 * x * (1.0 + np.tanh(0.7978845608028654 * (x + 0.044715 * x**3))), dtype=np.float32)
