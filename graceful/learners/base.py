"""The protocol of learners, and how a network is run with one. Driver and workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, Protocol, Self, cast, runtime_checkable

from numpy.typing import NDArray
from torch import Tensor, nn

from graceful.learners.batch import Batch
from graceful.models.base import Outputs

Role = Literal["query", "gallery"]
DEFAULT_ENCODER = "default"
"""Name of the encoder where a learner has one for everything."""


@runtime_checkable
class Learner(Protocol):
    """What training, caches of outputs, evaluation, search and serving ask of a version.

    Attributes:
        encoders: Names of the ways to embed a batch. One, `DEFAULT_ENCODER`, unless queries and gallery are embedded
            differently: then `query` and `gallery`. Training runs the `query` encoder alone, and losses compare with
            the `query` encoder of predecessors unless they read `gallery`; parameters that only the `gallery` encoder
            uses are not trained.
    """

    encoders: tuple[str, ...]

    def collate(self, items: Any, views: NDArray[Any] | None) -> Batch:
        """Make a batch of raw items.

        Args:
            items: What `Samples.read` returned, B of them.
            views: [B] uint64, one number per sample that determines its augmentation entirely; None: the clean view.
                The same item with the same number must give the same row.
        """
        ...

    def forward(self, network: nn.Module, batch: Batch, *, encoder: str) -> Outputs:
        """Run a network on a batch; embedding [B, d] and logits [B, C].

        Losses that read a predecessor's head (`influence`) call `network.classify` on embeddings of that length.
        """
        ...

    def task_loss(self, outputs: Outputs, batch: Batch, labels: Tensor) -> Tensor:
        """Return the task's own loss for each sample, [B], in fp32 at least.

        Args:
            outputs: The outputs of the new version, fp32 at least.
            batch: What `collate` made, on the device of the outputs.
            labels: [B] int64.
        """
        ...


@runtime_checkable
class KeepsAssets(Protocol):
    """A learner that needs more than weights: a tokenizer, a vocabulary, preprocessing numbers.

    They become files of the version bundle, see `graceful.models.assets`. A predecessor is then asked through its own
    ones, whatever the learner of the version in training has.
    """

    def assets(self) -> Mapping[str, Any]:
        """Return the files by name: `*.json` a JSON value, `*.safetensors` tensors by name, others bytes."""
        ...

    def restored(self, assets: Mapping[str, Any]) -> Self:
        """Return the learner of the version that these files, as `assets` returned them, belong to.

        The learner itself must stay as it is, because versions of one chain are open at the same time. The task's
        `network` is called when its attribute `learner` is the restored one.
        """
        ...


class RunsForward(Protocol):
    """A network that runs a learner's `forward` itself, on the network inside it: a linearised one."""

    def outputs_by(self, run: Callable[[nn.Module, Any], Outputs], batch: Batch) -> Outputs:
        """Return the outputs of a batch, made with `run`, which takes the network inside and the batch."""
        ...


MEMBERS = ("collate", "forward", "task_loss")
"""Methods that a learner must have."""
KEEPING = ("assets", "restored")
"""Methods that a learner has both of, or neither."""


def encoder_for(learner: Learner, role: Role) -> str:
    """Return the encoder for a role: the one of that name, else the learner's first."""
    return role if role in learner.encoders else learner.encoders[0]


def roles(learner: Learner) -> tuple[Role, ...]:
    """Return the roles that a learner embeds differently: `query` alone where one encoder does everything."""
    every: tuple[Role, ...] = ("query", "gallery")
    return every if encoder_for(learner, "query") != encoder_for(learner, "gallery") else every[:1]


def run(learner: Learner, network: nn.Module, batch: Batch, *, role: Role = "query") -> Outputs:
    """Run a network on a batch, with the learner's encoder for a role; training, and all but galleries, are queries."""
    encoder = encoder_for(learner, role)
    if hasattr(type(network), "outputs_by"):  # isinstance would take a hundredth of a small network's step
        wrapper = cast(RunsForward, network)
        return wrapper.outputs_by(partial(learner.forward, encoder=encoder), batch)
    return learner.forward(network, batch, encoder=encoder)
