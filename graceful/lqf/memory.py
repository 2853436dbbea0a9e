"""The quadratic of data that are gone, kept beside a version: later versions add it to that of their own data.

Data seen before are a term of the objective, D(delta) = 1/(2 N) sum W (J delta - R)^2. At a minimum delta1 with penalty
l its gradient is -l delta1, so that

    D(delta) = D(delta1) - l delta1'(delta - delta1) + 1/2 (delta - delta1)' G (delta - delta1)

and N, l, delta1 and G say all of it. G is kept by Kronecker factors, or by its largest eigenvectors. Eigenvectors hold
directions of single samples, as gradients do: such a memory is as sensitive as the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors
from torch import Tensor, nn

from graceful.errors import DataError, one_line
from graceful.lqf import kfac

FILE = "memory.safetensors"
_COUNT, _PENALTY, _VECTORS, _VALUES, _PARTS = "samples", "penalty", "vectors", "values", "parts"


class Curvature(Protocol):
    """G of samples that were seen before."""

    def times(self, vector: Tensor) -> Tensor:
        """Return G times a vector [P]."""
        ...


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """The largest eigenvectors.

    Attributes:
        vectors: [P, r].
        values: [r] eigenvalues.
    """

    vectors: Tensor
    values: Tensor

    def times(self, vector: Tensor) -> Tensor:
        """Implement `Curvature.times`."""
        product: Tensor = self.vectors @ (self.values * (self.vectors.T @ vector))
        return product

    def joined(self, other: LowRank, *, shares: tuple[float, float], rank: int) -> LowRank:
        """Return the largest eigenvectors of a weighted sum.

        Args:
            other: Of other samples.
            shares: The shares of both.
            rank: How many are kept.
        """
        roots = [
            each.vectors * (share * each.values).clamp(min=0.0).sqrt()
            for each, share in zip((self, other), shares, strict=True)
        ]
        return largest(torch.cat(roots, dim=1), rank=rank)


def largest(root: Tensor, *, rank: int) -> LowRank:
    """Return the largest eigenvectors of root root', root [P, n]."""
    values, vectors = torch.linalg.eigh(root.T @ root)
    kept = values.argsort(descending=True)[:rank]
    kept = kept[values[kept] > 0.0]
    return LowRank(vectors=root @ vectors[:, kept] / values[kept].sqrt(), values=values[kept])


@dataclass(frozen=True, kw_only=True)
class Factored:
    """Kronecker factors of several data sets, one after the other.

    Attributes:
        parts: Moments as `kfac.measured` gives them, and how many samples each is of.
        factors: Assembled.
    """

    parts: tuple[tuple[int, Mapping[str, Tensor]], ...]
    factors: tuple[kfac.Factors, ...]

    @classmethod
    def of(
        cls, parts: Sequence[tuple[int, Mapping[str, Tensor]]], network: nn.Module, names: Sequence[str]
    ) -> Factored:
        """Assemble the factors for a network at w0."""
        return cls(parts=tuple(parts), factors=tuple(kfac.assembled(network, names, part) for _, part in parts))

    def times(self, vector: Tensor) -> Tensor:
        """Implement `Curvature.times`: the mean over all samples."""
        total = sum(count for count, _ in self.parts)
        product = torch.zeros_like(vector)
        for (count, _), factors in zip(self.parts, self.factors, strict=True):
            product += count / total * factors.times(vector)
        return product


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a version keeps of its data and of those before.

    Attributes:
        curvature: G, the mean over all samples.
        samples: N.
        penalty: l that the version was solved with.
    """

    curvature: LowRank | Factored
    samples: int
    penalty: float

    def file(self) -> bytes:
        """Return the content of its file."""
        tensors = {
            _COUNT: torch.tensor(self.samples),
            _PENALTY: torch.tensor(self.penalty, dtype=torch.float64),
        }
        if isinstance(self.curvature, LowRank):
            tensors |= {_VECTORS: self.curvature.vectors.float(), _VALUES: self.curvature.values}
        else:
            counts = [count for count, _ in self.curvature.parts]
            tensors[_PARTS] = torch.tensor(counts)
            for index, (_, part) in enumerate(self.curvature.parts):
                tensors |= {f"{index} {name}": tensor.float() for name, tensor in part.items()}
        content: bytes = serialise_tensors({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        return content

    @classmethod
    def parse(cls, content: bytes, network: nn.Module, names: Sequence[str], *, where: str) -> Memory:
        """Read it.

        Args:
            content: The content of the file.
            network: At w0.
            names: Parameters with a delta.
            where: Whose memory, for messages.

        Raises:
            DataError: It is not what `file` wrote, or of other parameters.
        """
        device = next(network.parameters()).device
        try:
            tensors = {name: tensor.to(device) for name, tensor in parse_tensors(content).items()}
            samples, penalty = int(tensors[_COUNT]), float(tensors[_PENALTY])
            if _VECTORS in tensors:
                vectors, values = tensors[_VECTORS].double(), tensors[_VALUES].double()
                return cls(curvature=LowRank(vectors=vectors, values=values), samples=samples, penalty=penalty)
            parts = []
            for index, count in enumerate(tensors[_PARTS].tolist()):
                start = f"{index} "
                own = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
                parts.append((int(count), {key: value.double() for key, value in own.items()}))
            return cls(curvature=Factored.of(parts, network, names), samples=samples, penalty=penalty)
        except (KeyError, ValueError, RuntimeError, SafetensorError) as e:
            raise DataError(f"{where}: its memory cannot be read ({one_line(e)}); fetch the version again") from e


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """A memory as a term of the objective of other data.

    Attributes:
        curvature: G.
        share: The share of its samples in all samples.
        penalty: l of the version that keeps it.
        centre: [P] delta of that version.
        multiplier: Of G: above 1 where G is an approximation that is too weak.
    """

    curvature: Curvature
    share: float
    penalty: float
    centre: Tensor
    multiplier: float = 1.0

    def times(self, vector: Tensor) -> Tensor:
        """Return its part of the Hessian times a vector [P]."""
        return self.share * self.multiplier * self.curvature.times(vector)

    def slope(self, delta: Tensor) -> Tensor:
        """Return its part of the gradient at delta [P]."""
        return self.times(delta - self.centre) - self.share * self.penalty * self.centre
