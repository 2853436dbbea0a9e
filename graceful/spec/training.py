"""How the network is optimised: optimizer, engine, schedule, limits. Runs in every process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from graceful.sections import Count, Fraction, Positive, Section
from graceful.spec.engines import DeepSpeedEngine, Engine, Fsdp2Engine
from graceful.spec.methods import Descent, Method


class Rates(Section):
    """Learning rates that differ within a network."""

    layer_decay: Annotated[float, Field(gt=0.0, le=1.0, exclude_if=lambda factor: factor == 1.0)] = 1.0
    """Factor of lr for each layer below the head: the topmost layer learns with lr x layer_decay, the next with lr x
    layer_decay^2, and so on; 1: all layers with lr. Layers are the items of the network's largest list of modules."""
    head_factor: Annotated[float, Field(gt=0.0, le=1e6, exclude_if=lambda factor: factor == 1.0)] = 1.0
    """Factor of lr for head and projection; 10 suits a head that begins at random on a checkpoint."""
    decay_norms: Annotated[bool, Field(exclude_if=lambda decay: decay)] = True
    """false: biases and scales of normalisation have no weight decay."""


class Sgd(Rates):
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"
    lr: Positive = 0.05
    """Learning rate after the warm-up."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Share of the last step's direction that is kept."""
    nesterov: bool = True
    """Look ahead along the momentum."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 5e-4
    """L2 penalty on the weights."""


class AdamW(Rates):
    """Adam with decoupled weight decay."""

    kind: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    """Learning rate after the warm-up."""
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Decay of the mean of gradients."""
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Decay of the mean of squared gradients."""
    eps: Positive = 1e-8
    """Added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Share of the weights that a step takes off, times lr."""


Optimizer = Annotated[Sgd | AdamW, Field(discriminator="kind")]


ClassWeights = Literal["balanced"] | dict[str, Annotated[float, Field(ge=0.0)]]


def _or_range(schema: dict[str, Any]) -> None:
    """Let the JSON schema of a number of workers take `{min, max}` as well."""
    count = {"type": "integer", "minimum": 1}
    ends = {"type": "object", "properties": {"min": count, "max": count}, "required": ["min", "max"]}
    number = {name: schema.pop(name) for name in ("type", "minimum")}
    schema["anyOf"] = [number, {**ends, "additionalProperties": False}]


class Train(Section):
    """How the network is optimised."""

    method: Annotated[Method, Field(exclude_if=lambda method: method.kind == "descent")] = Descent()
    """descent: steps of `optimizer`; lqf: the minimum of a quadratic, which no order of data changes; combination: lqf
    versions added up; pruned: weights that `graceful search-architecture` left; without `kind`: descent."""
    epochs: Count = 4
    """Passes over the training data."""
    batch_size: Count = 128
    """Samples per optimiser step over all workers."""
    accumulation: Count = 1
    """Micro-batches per optimiser step; batch_size must divide by workers x accumulation."""
    optimizer: Optimizer = Sgd()
    """Which steps are taken; without `kind`: sgd."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: cosine to zero, or constant."""
    warmup: Fraction = 0.1
    """Share of all steps with linearly rising learning rate."""
    clip: Annotated[float, Field(ge=0.0)] = 5.0
    """Largest gradient norm; 0 switches clipping off (training has collapsed without it)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of forward and backward pass; weights are kept in fp32, but for `weights: bf16`."""
    weights: Annotated[Literal["fp32", "bf16"], Field(exclude_if=lambda kind: kind == "fp32")] = "fp32"
    """bf16: weights, gradients and optimiser state have 2 bytes a number and no copies in fp32; steps that are small
    beside a weight are lost. Needs precision: bf16, and an engine of plain torch."""
    recompute: Annotated[bool, Field(exclude_if=lambda flag: not flag)] = False
    """Activation checkpointing: keep the inputs of the network's layers alone, and run each again in the backward pass;
    a third more arithmetic for a fraction of the memory. Layers as in `optimizer.layer_decay`."""
    compile: Annotated[bool, Field(exclude_if=lambda flag: not flag)] = False
    """Run the network through torch.compile, which needs a C++ compiler where workers are and a minute at the start."""
    engine: Engine = DeepSpeedEngine()
    """What holds weights and optimiser state; without `kind`: deepspeed."""
    num_workers: Annotated[int, Field(ge=0, json_schema_extra=_or_range)] = 2
    """Ray Train workers; 0 trains in this process without Ray (plain torch or DeepSpeed alike). `{min: 2, max: 8}` is
    num_workers: 8 with min_workers: 2."""
    min_workers: Annotated[Count | None, Field(exclude_if=lambda count: count is None)] = None
    """On how few workers training begins or goes on where the cluster has no room for more; it grows again when it has,
    always to a number by which batch_size can be divided. None: on num_workers alone."""
    use_gpu: bool | None = None
    """None: when this machine or cluster has one per worker."""
    checkpoint_every: Count | None = None
    """Optimiser steps between checkpoints; None: once per epoch."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often a failed worker group is restarted from the last checkpoint."""
    timeout: Positive = 86_400.0
    """Seconds after which training is stopped with exit code 5."""
    start: Annotated[Literal["random", "latest", "head"], Field(exclude_if=lambda start: start == "random")] = "random"
    """Initial weights. latest: those of the latest predecessor, which must have the same network; head: those of its
    head alone, whatever the rest of the network is, so that new embeddings grow towards the directions of the old
    classes. Classes are matched by name, new ones start at random. Reference runs start there too."""
    class_weights: Annotated[ClassWeights | None, Field(exclude_if=lambda weights: weights is None)] = None
    """What samples of a class count in the task's loss: balanced, so that all classes count the same, or factors by
    name (1 for those left out). They are divided by their mean over the training samples. None: all samples alike."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the initial weights, the order of samples and the augmentation."""

    @property
    def worker_counts(self) -> list[int]:
        """The numbers of workers on which a run may be, in rising order: `num_workers` alone, if it is not elastic."""
        if self.min_workers is None:
            return [self.num_workers]
        counts = range(self.min_workers, self.num_workers + 1)
        return [count for count in counts if self.batch_size % (count * self.accumulation) == 0]

    @model_validator(mode="before")
    @classmethod
    def _from_range(cls, values: Any) -> Any:
        """Read `num_workers: {min, max}`."""
        given = values.get("num_workers") if isinstance(values, Mapping) else None
        if not isinstance(given, Mapping):
            return values
        if set(given) != {"min", "max"} or values.get("min_workers") is not None:
            raise ValueError(f"num_workers must be a number or {{min: 1, max: 4}}, got {dict(given)!r:.60}")
        return {**values, "num_workers": given["max"], "min_workers": given["min"]}

    @model_validator(mode="after")
    def _elastic(self) -> Train:
        if self.min_workers is None:
            return self
        if self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers must be at most num_workers = {self.num_workers}, got {self.min_workers}; leave it out"
            )
        if self.method.kind not in ("descent", "pruned"):
            raise ValueError(f"min_workers must be left out with method {self.method.kind}, got {self.min_workers}")
        if isinstance(self.engine, DeepSpeedEngine) and self.engine.zero_stage == 3:
            raise ValueError(
                f"min_workers must be left out with zero_stage 3, whose checkpoints keep their number of workers, got"
                f" {self.min_workers}; engine fsdp2 takes any"
            )
        return self

    @model_validator(mode="after")
    def _engine_fits(self) -> Train:
        if self.weights == "bf16" and (self.precision != "bf16" or isinstance(self.engine, DeepSpeedEngine)):
            raise ValueError(
                "train.weights: bf16 needs train.precision: bf16 and engine torch or fsdp2, got"
                f" {self.precision} and {self.engine.kind}; DeepSpeed keeps copies in fp32"
            )
        if isinstance(self.engine, Fsdp2Engine) and self.precision == "fp16":
            raise ValueError("train.precision: fp16 needs engine torch or deepspeed, got fsdp2; write bf16")
        return self

    @field_validator("class_weights", mode="before")
    @classmethod
    def _balanced_or_by_name(cls, weights: Any) -> Any:
        if weights is None or weights == "balanced":
            return weights
        if not isinstance(weights, Mapping):
            raise ValueError(f"must be balanced, or factors by class such as {{spam: 2}}, got {weights!r:.40}")
        for name, factor in weights.items():
            number = isinstance(factor, int | float) and not isinstance(factor, bool)
            if not number or not 0.0 <= factor < math.inf:
                raise ValueError(f"factor of class {name!r} must be a number from 0 on, got {factor!r:.40}")
        return weights


LIMITS = {"timeout", "max_failures", "checkpoint_every"}
"""How long and how often training may be tried: does not change what comes out, so no digest covers it."""
