"""Predecessors as the new version sees them: frozen networks, label maps by name, selection. Driver and workers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graceful.constraints import ALL, LATEST
from graceful.errors import DataError, SpecError
from graceful.learners.base import Learner, Role, run
from graceful.learners.batch import to_device
from graceful.models.base import CODE_FAULTS, Outputs, answers
from graceful.tasks.names import Column

if TYPE_CHECKING:
    from graceful.models.embedding_contract import EmbeddingContract


class OldOutputs(NamedTuple):
    """Outputs of one predecessor on a batch, cached or live; fp32, on the device of the loss."""

    logits: Tensor
    """[B, C_old] in its own label space."""
    embedding: Tensor
    """[B, d_old]"""
    present: Tensor
    """[B] bool: False where nothing is known about the sample; such samples get weight 0."""
    gallery: Tensor | None = None
    """[B, d_old] by its gallery encoder, where a loss reads it and it is another one; None: as `embedding`."""


class Named(Protocol):
    """A version, or what stands for one."""

    @property
    def name(self) -> str:
        """Return the name of the version."""


V = TypeVar("V", bound=Named)


class Completeness(StrEnum):
    """How much of a version's weights is left; its description always is."""

    WHOLE = "whole"
    HEAD = "head"
    NOTHING = "nothing"


class Unrunnable(NamedTuple):
    """Why a version's code is not run."""

    reason: str
    """The rest of a sentence about the version."""
    remedy: str
    """What a person can do about it."""


@dataclass(frozen=True, kw_only=True)
class Predecessor:
    """One older version, ready to run. Always eval mode, fp32, no gradients, outside any engine.

    Attributes:
        name: Version name, e.g. `v1`; unique in a chain.
        model_id: Identity in the registry.
        digest: SHA-256 of the version bundle: weights and description.
        classes: Class names in the order of its logits.
        embedding_size: d.
        network: With `embed` and `classify`.
        learner: Its **own**: how it makes batches of raw items, and outputs of batches.
        transform_digest: SHA-256 of what determines the transform, as it runs now.
        notes: What a reader of the report must know about this version, e.g. that its transform may have changed.
        training_ids: Opens the ids it was trained on, [N]; raises DataError where they are gone. None: unknown.
        completeness: How much of its weights is left. Only a whole version runs; the head of another may classify,
            and its cached outputs may be known.
        model: The family it was trained in; an ancestor of a branch may be of another one than the branch.
        role: Which of its encoders runs by default, see `Learner.encoders`.
        unrunnable: Why its code is not run; nothing of it is loaded then, as if all weights were gone. None: it may be.
        contract: How its embeddings are made and compared; None: unknown.
    """

    name: str
    model_id: str
    digest: str
    classes: tuple[str, ...]
    embedding_size: int
    network: nn.Module
    learner: Learner
    transform_digest: str
    notes: tuple[str, ...] = ()
    training_ids: Callable[[], Column] | None = None
    completeness: Completeness = Completeness.WHOLE
    model: str = ""
    role: Role = "query"
    unrunnable: Unrunnable | None = None
    contract: EmbeddingContract | None = None

    @property
    def unrunnable_reason(self) -> str | None:
        """Return why it cannot be run, as the rest of a sentence about it; None where it can."""
        if self.unrunnable is not None:
            return self.unrunnable.reason
        reasons = {Completeness.HEAD: "only its head is left", Completeness.NOTHING: "its weights are gone"}
        return reasons.get(self.completeness)

    @property
    def remedy(self) -> str:
        """Return what makes a version that cannot be run runnable again."""
        return f"restore {self.model_id} from a backup" if self.unrunnable is None else self.unrunnable.remedy

    @torch.no_grad()
    def __call__(self, items: Any, views: NDArray[np.uint64] | None = None, *, role: Role | None = None) -> Outputs:
        """Return fp32 embeddings [B, d] and logits [B, C] of raw items, on the network's device; NaN where it has no
        answer.

        Args:
            items: What `Samples.read` returned.
            views: See `Learner.collate`.
            role: `query` or `gallery`, where its learner embeds them differently; None: `self.role`.

        Raises:
            DataError: It is not whole, or its code does not take these items (seen on the CPU alone: on a GPU the same
                exceptions may be those of the device, and pass).
        """
        if self.unrunnable_reason:
            raise DataError(f"{self.name}: cannot be run, {self.unrunnable_reason}; {self.remedy}")
        device = next(self.network.parameters()).device
        try:
            batch = to_device(self.learner.collate(items, views), device)
            with torch.autocast(device.type, enabled=False):
                outputs = run(self.learner, self.network, batch, role=role or self.role)
        except DataError as e:  # e.g. a column of a table that this version alone reads
            raise DataError(f"{self.name}: {e.message}", e.facts) from e
        except CODE_FAULTS as e:
            if device.type != "cpu":
                raise
            reason = f"{type(e).__name__}: {' '.join(str(e).split())}"
            raise DataError(f"{self.name}: its network or transform does not take these samples ({reason})") from e
        return answers(outputs)


def on_device(version: Predecessor, device: torch.device) -> Predecessor:
    """Return a version whose network is on a device: itself, or one with a copy, so that its own stays where it is."""
    parameter = next(version.network.parameters(), None)
    if parameter is None or parameter.device == device:
        return version
    return replace(version, network=copy.deepcopy(version.network).to(device))


def freeze(network: nn.Module) -> nn.Module:
    """Put a network into the state predecessors must be in: eval, fp32, no gradients."""
    return network.eval().float().requires_grad_(False)


def label_map(new: Sequence[str], old: Sequence[str]) -> Tensor:
    """Map new labels to old ones by name.

    Returns:
        [C_new] int64; -1 where the old version does not know the class.
    """
    position = {name: index for index, name in enumerate(old)}
    return torch.tensor([position.get(name, -1) for name in new], dtype=torch.int64)


def select(chain: Sequence[V], against: str | Sequence[str]) -> tuple[V, ...]:
    """Choose the predecessors that the losses see, in the order of the chain.

    Args:
        chain: Latest first.
        against: `latest`, `all`, or names.

    Raises:
        SpecError: A name that is not in the chain.
    """
    if against == ALL:
        return tuple(chain)
    if against == LATEST:
        return tuple(chain[:1])
    by_name = {version.name: version for version in chain}
    for name in against:
        if name not in by_name:
            ancestors = ", ".join(by_name) or "no versions yet"
            raise SpecError(f"compatibility.against: {name!r} is not an ancestor; the chain has {ancestors}")
    return tuple(version for version in chain if version.name in against)
