"""What every part of a spec has in common: frozen, closed, documented; and its value ranges. Runs in every process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""Lower case letters, digits and inner hyphens, at most 63: also a valid name in MLflow, S3 and Kubernetes."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Weight = Annotated[float, Field(ge=0.0, le=100.0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen part of a spec that refuses unknown keys and numbers that are not finite.

    A field that is a union with a default (`train.optimizer`) may leave `kind` out: it is the default's kind then.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _default_kinds(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        kinds = {
            name: str(getattr(field.default, field.discriminator))
            for name, field in cls.model_fields.items()
            if isinstance(field.discriminator, str) and isinstance(field.default, Section)
        }
        filled = {
            name: {"kind": kind, **values[name]}
            for name, kind in kinds.items()
            if isinstance(values.get(name), Mapping) and "kind" not in values[name]
        }
        return {**values, **filled} if filled else values
