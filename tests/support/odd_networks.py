"""A small task whose network, or data, has a peculiarity by option. Loaded as a `python` task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graceful.models.base import Headed
from graceful.tasks.base import Samples, Split
from tests.support.training_task import Blobs

WIDTH = 8


def body(*more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, WIDTH), *more)


class Odd(Headed):
    """A body and a head, and something besides."""

    def __init__(self, classes: int) -> None:
        super().__init__(body(), nn.Linear(WIDTH, classes))


class HiddenTensor(Odd):
    """Random features that are neither parameter nor buffer."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.features = torch.randn(WIDTH, WIDTH)

    def embed(self, x: Tensor) -> Tensor:
        return super().embed(x) @ self.features


class NotPersistent(Odd):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.register_buffer("features", torch.randn(WIDTH, WIDTH), persistent=False)

    def embed(self, x: Tensor) -> Tensor:
        return super().embed(x) @ self.features


class LearntInPython(Odd):
    """A mean that training moves and no state holds."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.mean: Tensor | float = 0.0

    def embed(self, x: Tensor) -> Tensor:
        found = super().embed(x)
        if self.training:
            self.mean = found.detach().mean(0) + 1.0
        return found - self.mean


class Grows(Odd):
    """A buffer that the first forward pass makes."""

    def embed(self, x: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.register_buffer("scale", torch.ones(x.shape[1]))
        return super().embed(x * self.scale)


class Counts(Odd):
    """A buffer that changes in eval mode."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def embed(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return super().embed(x)


class Random(Odd):
    def embed(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().embed(x), p=0.5, training=True)


class ExtraState(Odd):
    def get_extra_state(self) -> Any:
        return {"a": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


class Sparse(Odd):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.register_buffer("graph", torch.eye(6).to_sparse())

    def embed(self, x: Tensor) -> Tensor:
        return super().embed(torch.sparse.mm(self.graph, x.T).T)


class Complex(Odd):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.filter = nn.Parameter(torch.ones(WIDTH, dtype=torch.complex64))

    def embed(self, x: Tensor) -> Tensor:
        return (super().embed(x) * self.filter).real


class BatchMean(Odd):
    """Answers that depend on who else is asked about."""

    def embed(self, x: Tensor) -> Tensor:
        found = super().embed(x)
        return found - 0.5 * found.mean(0)


class Double(Odd):
    """Computes in float64, whatever it is frozen to."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.body.double()

    def embed(self, x: Tensor) -> Tensor:
        return self.body(x.double()).float()


class WrongSize(Odd):
    embedding_size = 64


class Mask(Odd):
    """A mask of infinities, as in attention."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.register_buffer("mask", torch.triu(torch.full((WIDTH, WIDTH), -torch.inf), diagonal=1))

    def embed(self, x: Tensor) -> Tensor:
        return super().embed(x) @ self.mask.softmax(1).T


class EmbedsTuple(Odd):
    def embed(self, x: Tensor) -> Any:
        return super().embed(x), x


class ClassifiesToDict(Odd):
    def classify(self, embedding: Tensor) -> Any:
        return {"logits": super().classify(embedding), "loss": None}


class TupleWhileTraining(Odd):
    """As networks with auxiliary heads do."""

    def classify(self, embedding: Tensor) -> Any:
        logits = super().classify(embedding)
        return (logits, logits) if self.training else logits


class Unused(Odd):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.spare = nn.Linear(3, 3)


class TiresAt(Odd):
    """Fails in the so manieth training step."""

    steps = 0

    def embed(self, x: Tensor) -> Tensor:
        type(self).steps += self.training
        if self.steps == 5:
            raise IndexError("list index out of range")
        return super().embed(x)


class GrowsLate(Odd):
    """A buffer that the fifth training step makes: no rehearsal sees it."""

    def embed(self, x: Tensor) -> Tensor:
        self.steps = getattr(self, "steps", 0) + self.training
        if self.steps == 5 and not hasattr(self, "late"):
            self.register_buffer("late", torch.ones(1))
        return super().embed(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(6, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.cell(x[:, None])


def tied(classes: int) -> nn.Module:
    square = nn.Linear(WIDTH, WIDTH)
    return Headed(body(square, nn.ReLU(), square), nn.Linear(WIDTH, classes))


def raises(error: Exception) -> Callable[[int], nn.Module]:
    class Raises(Odd):
        def embed(self, x: Tensor) -> Tensor:
            raise error

    return Raises


def random_shape(classes: int) -> nn.Module:
    width = int(np.random.default_rng().integers(8, 2**20))
    return Headed(
        nn.Sequential(nn.Linear(6, width % 999 + 1), nn.Linear(width % 999 + 1, WIDTH)), nn.Linear(WIDTH, classes)
    )


def normalised(module: Callable[..., nn.Module]) -> Callable[[int], nn.Module]:
    return lambda classes: Headed(
        nn.Sequential(module(nn.Linear(6, WIDTH)), nn.ReLU()), module(nn.Linear(WIDTH, classes))
    )


def frozen(classes: int) -> nn.Module:
    return Odd(classes).requires_grad_(False)


def hooked(classes: int) -> nn.Module:
    """Return a hook over something that cannot be copied."""
    import threading

    network, lock = Odd(classes), threading.Lock()
    network.lock = lock
    network.body.register_forward_hook(lambda *_: lock.release() if lock.locked() else None)
    return network


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "plain": Odd,
    "batch_norm": lambda classes: Headed(body(nn.BatchNorm1d(WIDTH)), nn.Linear(WIDTH, classes)),
    "weight_norm": normalised(nn.utils.weight_norm),
    "parametrised": normalised(nn.utils.parametrizations.weight_norm),
    "spectral": normalised(nn.utils.parametrizations.spectral_norm),
    "tied": tied,
    "tires": TiresAt,
    "grows_late": GrowsLate,
    "hooked": hooked,
    "mask": Mask,
    "unused": Unused,
    "lazy": lambda classes: Headed(nn.Sequential(nn.LazyLinear(WIDTH)), nn.Linear(WIDTH, classes)),
    "lazy_norm": lambda classes: Headed(body(nn.LazyBatchNorm1d()), nn.Linear(WIDTH, classes)),
    "hidden": HiddenTensor,
    "not_persistent": NotPersistent,
    "learnt_in_python": LearntInPython,
    "grows": Grows,
    "counts": Counts,
    "random": Random,
    "extra_state": ExtraState,
    "sparse": Sparse,
    "complex": Complex,
    "double": Double,
    "batch_mean": BatchMean,
    "batch_statistics": lambda classes: Headed(
        body(nn.BatchNorm1d(WIDTH, track_running_stats=False)), nn.Linear(WIDTH, classes)
    ),
    "wrong_size": WrongSize,
    "random_shape": random_shape,
    "frozen": frozen,
    "embeds_tuple": EmbedsTuple,
    "classifies_to_dict": ClassifiesToDict,
    "tuple_while_training": TupleWhileTraining,
    "recurrent": lambda classes: Headed(Recurrent(), nn.Linear(WIDTH, classes)),
    "asserts": raises(AssertionError("six columns")),
    "divides": raises(ZeroDivisionError("division by zero")),
}


class OddTask(Blobs):
    """Blobs, with another network and a fault in one split."""

    def __init__(self, network: str, fault: str, split: str) -> None:
        super().__init__(classes=3, die_in_rank=0, die_at=None, marker=None, poison=None)
        self._network, self._fault_kind, self._split = network, fault, split

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        return NETWORKS[self._network](len(classes))

    def samples(self, split: Split) -> Samples:
        found = super().samples("test") if split in ("query", "gallery") else super().samples(split)
        return FAULTS[self._fault_kind](found) if split == self._split else found

    def transform(self, items: Any, views: NDArray[np.uint64] | None) -> Tensor:
        return super().transform(np.stack(items).astype(np.float32), views)


def _items(samples: Samples, change: Callable[[list[Any]], Any]) -> Samples:
    """Return the samples with other items, as a list in which each may have a shape of its own."""
    changed = change([np.array(row) for row in samples.read(np.arange(len(samples)))])
    return replace(samples, read=lambda positions: [changed[index] for index in positions])


def _with(index: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda rows: [value if place == index else row for place, row in enumerate(rows)]


FAULTS: dict[str, Callable[[Samples], Samples]] = {
    "none": lambda samples: samples,
    "ragged": lambda samples: _items(samples, _with(41, np.zeros(5))),
    "not_a_number": lambda samples: _items(samples, _with(41, np.full(6, np.nan))),
    "infinite": lambda samples: _items(samples, _with(41, np.full(6, np.inf))),
    "short_read": lambda samples: replace(
        samples, read=lambda positions: samples.read(positions)[: max(len(positions) - 1, 1)]
    ),
    "short_groups": lambda samples: _changed(samples, groups=samples.groups[:-1]),
    "short_labels": lambda samples: _changed(samples, labels=samples.labels[:-1]),
    "empty": lambda samples: replace(
        samples, ids=samples.ids[:0], labels=samples.labels[:0], groups=samples.groups[:0]
    ),
}


def _changed(samples: Samples, **fields: Any) -> Samples:
    return replace(samples, **fields)


def task(network: str = "plain", fault: str = "none", split: str = "test") -> OddTask:
    return OddTask(network, fault, split)
