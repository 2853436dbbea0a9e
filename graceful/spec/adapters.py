"""Adapters: small matrices that are trained beside the frozen weights of a checkpoint. Runs in every process."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from graceful.sections import Count, Positive, Section


class Lora(Section):
    """Low-rank adaptation (Hu et al. 2021): a linear layer W becomes W + alpha / r x B A, and only A and B are trained.
    A version then keeps A and B, and names the checkpoint by its SHA-256."""

    kind: Literal["lora"] = "lora"
    r: Count = 8
    """Rank of the matrices."""
    alpha: Positive = 16.0
    """Scale of what they add, divided by r."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that are adapted, e.g. [query, value], as the model calls them; empty: all of them."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the adapters' inputs that is dropped in training."""

    @field_validator("targets", mode="before")
    @classmethod
    def _listed(cls, targets: Any) -> Any:
        return (targets,) if isinstance(targets, str) else targets


class Adapted(Section):
    """A network of a checkpoint that may be adapted."""

    peft: Annotated[Lora | None, Field(exclude_if=lambda peft: peft is None)] = None
    """Train adapters beside the checkpoint's weights, which stay as they are; None: train the weights themselves."""
