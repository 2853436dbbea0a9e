"""The space of networks that `graceful search-architecture` searches, and the budget to keep. Runs in every process."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from graceful.errors import SpecError
from graceful.sections import Count, Positive, Section
from graceful.spec.stages import StagedNetwork, Width

if TYPE_CHECKING:
    from graceful.spec.refresh import RefreshSpec

Reward = Literal["small_on_big", "small_alone", "product"]


class StageChoices(Section):
    """What a stage may be: each list holds the values to choose from, one value where there is no choice."""

    width: Annotated[tuple[Width, ...], Field(min_length=1)]
    """Channels."""
    kernel: Annotated[tuple[Literal[3, 5, 7], ...], Field(min_length=1)] = (3,)
    """Side of the convolutions, in pixels."""
    depth: Annotated[tuple[Annotated[int, Field(ge=1, le=16)], ...], Field(min_length=1)] = (1,)
    """Blocks."""
    depthwise: Annotated[tuple[bool, ...], Field(min_length=1)] = (False, True)
    """Whether each channel is convolved alone."""

    @model_validator(mode="after")
    def _distinct(self) -> StageChoices:
        for name in ("width", "kernel", "depth", "depthwise"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must name each value once, got {list(values)}")
        return self

    @property
    def size(self) -> int:
        """Return how many stages these are."""
        return prod(len(values) for values in (self.width, self.kernel, self.depth, self.depthwise))


class ArchitectureSpace(Section):
    """Networks of kind `stages` that share the weights of one supernet."""

    stages: Annotated[tuple[StageChoices, ...], Field(min_length=1, max_length=8)]
    """From the image to the embedding; every network of the space has as many."""
    resolution: Annotated[
        tuple[Annotated[int, Field(ge=8, le=1024)] | None, ...], Field(min_length=1, max_length=8)
    ] = (None,)
    """Pixels a side to which images are scaled inside the network; null: they stay as they are."""

    @model_validator(mode="after")
    def _distinct(self) -> ArchitectureSpace:
        if len(set(self.resolution)) < len(self.resolution):
            raise ValueError(f"resolution must name each value once, got {list(self.resolution)}")
        return self

    @property
    def size(self) -> int:
        """Return how many networks the space has."""
        return prod(stage.size for stage in self.stages) * len(self.resolution)


class Budget(Section):
    """What a network may cost at most, the classifier aside, which devices do not run; null: no limit."""

    macs: Count | None = None
    """Multiply-accumulates of one embedding; papers call them FLOPs."""
    parameters: Count | None = None
    """Weights."""
    int8_bytes: Count | None = None
    """Bytes of its weights in 8 bits, with scales and biases; files also hold their graph."""
    latency_ms: Positive | None = None
    """Median of the milliseconds of one embedding, measured on this machine: one image, one core."""


class Pruning(Section):
    """Channels of task.network are left out, the least important first: several capacities from one training.

    Each capacity is a part of the next larger one and has the same weights. It takes as many passes as train.epochs
    to train the whole network, then `architectures.epochs` in which all capacities are trained together. Of the rest
    of `architectures` it reads images and recalibration.
    """

    capacities: Annotated[tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...], Field(min_length=1, max_length=8)]
    """Shares of the multiply-accumulates of task.network, e.g. [0.5, 0.25]; the whole network is always one more."""
    project: bool = True
    """Where the gradients of two capacities point against each other at a tensor of weights, take out of each what is
    against the other one. false: add them as they are."""

    @model_validator(mode="after")
    def _falling(self) -> Pruning:
        if list(self.capacities) != sorted(set(self.capacities), reverse=True):
            raise ValueError(
                f"capacities must fall, each of them once, got {list(self.capacities)}; write"
                f" {sorted(set(self.capacities), reverse=True)}"
            )
        if len(set(map(percent, self.capacities))) < len(self.capacities):
            raise ValueError(f"capacities must differ by a whole percent, got {list(self.capacities)}")
        return self


def percent(capacity: float) -> int:
    """Return a capacity in percent, by which its files and its version are called; at least 1."""
    return max(1, round(100 * capacity))


UNPRUNED = ("budget", "method", "reward", "evaluations", "population", "parents", "mutation", "actors", "seed")
"""Keys that pruning, which measures every capacity and searches nothing, does not read."""


class Architectures(Section):
    """`graceful search-architecture`: the network of a query model that finds most within a budget."""

    space: Annotated[ArchitectureSpace | None, Field(exclude_if=lambda space: space is None)] = None
    """What is searched; embedding, head and batch_norm are those of task.network. null: `pruning` says what is done."""
    pruning: Annotated[Pruning | None, Field(exclude_if=lambda pruning: pruning is None)] = None
    """Prune task.network instead of searching a space; null: search."""
    budget: Budget = Budget()
    """What the network may cost."""
    method: Literal["evolution", "random"] = "evolution"
    """random: the baseline that a search must beat."""
    reward: Reward = "small_on_big"
    """mAP on the gallery model's index, on an index of the network's own, or the product of both."""
    evaluations: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    """Networks that are measured; more of them continue a search."""
    population: Annotated[int, Field(ge=2, le=10_000)] = 20
    """Networks of a generation; the first one is random."""
    parents: Annotated[int, Field(ge=1, le=10_000)] = 8
    """Best networks so far, of which half of a generation are mutants and half are crosses."""
    mutation: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Chance of each choice of a mutant to be drawn again."""
    epochs: Count | None = None
    """Passes in which the supernet is trained; null: twice train.epochs, because each step trains one path of it. Of
    pruning: in which all capacities are trained together; null: train.epochs."""
    held_out: Annotated[float, Field(ge=0.0, le=0.5)] = 0.2
    """Share of the classes that the supernet is not trained on; networks are measured on their validation samples.
    0: all classes are trained on, and networks are measured on validation samples of them."""
    images: Annotated[int, Field(ge=2, le=1_000_000)] = 4000
    """Validation samples at most that networks are measured on, half of them queries."""
    recalibration: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Batches of training samples from which batch normalisation is recalibrated for each network."""
    actors: Annotated[int, Field(ge=0, le=1024)] = 0
    """Ray actors that hold the supernet and measure networks; 0: this process does."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Of the search; null: train.seed."""

    @model_validator(mode="after")
    def _one_way(self) -> Architectures:
        if (self.space is None) == (self.pruning is None):
            got = "neither" if self.space is None else "both"
            raise ValueError(
                f"must have either space or pruning, got {got}; write space: {{stages: [{{width: [4, 8]}}]}}, or"
                " pruning: {capacities: [0.5, 0.25]}"
            )
        unread = [name for name in UNPRUNED if getattr(self, name) != type(self).model_fields[name].default]
        if self.pruning is not None and unread:
            raise ValueError(f"{unread[0]} has no part in pruning, which measures every capacity; leave it out")
        return self


def require_searchable(spec: RefreshSpec) -> Architectures:
    """Return the section of a spec whose architecture can be searched.

    Raises:
        SpecError: It has no such section, is not a query model, or its network is not written as stages.
    """
    section, network = spec.architectures, getattr(spec.task, "network", None)
    if section is None:
        raise SpecError(
            "architectures: is missing, so there is nothing to search; write e.g. architectures: {space: {stages:"
            " [{width: [4, 8]}, {width: [8, 16]}]}, budget: {macs: 60000}}"
        )
    if not isinstance(network, StagedNetwork):
        kind = getattr(network, "kind", "of a Python task")
        raise SpecError(
            f"task.network: must be of kind stages to be searched, got {kind}; write {{kind: stages, stages: [{{width:"
            " 8}]}, whose embedding and head the networks get"
        )
    if spec.gallery is None:
        raise SpecError(
            "gallery: is missing; a search compares query models on the index of a gallery model, write gallery:"
            " {version: MODEL@champion}"
        )
    if spec.train.method.kind != "descent":
        raise SpecError(
            f"train.method: must be descent to train a supernet, got {spec.train.method.kind}; leave it out"
        )
    return section


def space_of(section: Architectures) -> ArchitectureSpace:
    """Return the space of a section that has no pruning."""
    assert section.space is not None, "validated"
    return section.space
