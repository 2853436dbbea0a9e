"""What holds weights and optimiser state while a network is trained. Runs in every process."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from graceful.sections import Section


class DeepSpeedEngine(Section):
    """DeepSpeed; the JSON it reads is derived from this spec, and `config` adds to it."""

    kind: Literal["deepspeed"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 2
    """0: plain data parallel; 1: shard optimiser state; 2: and gradients; 3: and parameters."""
    offload: Annotated[Literal["none", "optimizer", "all"], Field(exclude_if=lambda offload: offload == "none")] = (
        "none"
    )
    """What lies in the memory of the CPU, and is updated there: optimizer, its state (ZeRO 1 to 3); all, the parameters
    too (ZeRO 3). Steps take longer."""
    sharded_init: Annotated[bool, Field(exclude_if=lambda flag: not flag)] = False
    """Build the network under zero.Init, so that no worker ever holds all of it (ZeRO 3). For networks of Python tasks
    with random weights, whose modules set none but their own."""
    config: dict[str, Any] = Field(default={}, exclude_if=lambda config: not config)
    """Further keys of DeepSpeed's JSON, such as {zero_optimization: {reduce_bucket_size: 1e8}} or a place for offloaded
    state on NVMe. A key that graceful derives from the spec may only have the value that it has there."""

    @model_validator(mode="after")
    def _stage_fits(self) -> DeepSpeedEngine:
        least = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(f"offload: {self.offload} needs zero_stage {least} or more, got {self.zero_stage}")
        if self.sharded_init and self.zero_stage != 3:
            raise ValueError(f"sharded_init needs zero_stage 3, got {self.zero_stage}")
        return self


class TorchEngine(Section):
    """Plain torch, DistributedDataParallel when there is more than one worker."""

    kind: Literal["torch"] = "torch"
    find_unused_parameters: Annotated[bool, Field(exclude_if=lambda flag: not flag)] = False
    """Look in each step for parameters that the loss does not reach, so that workers do not wait for their gradients.
    Other engines need no such flag."""


class Fsdp2Engine(Section):
    """Plain torch with `fully_shard`: weights, gradients and optimiser state in shards, gathered layer by layer."""

    kind: Literal["fsdp2"] = "fsdp2"


Engine = Annotated[DeepSpeedEngine | TorchEngine | Fsdp2Engine, Field(discriminator="kind")]
