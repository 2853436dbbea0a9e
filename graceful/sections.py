"""What every part of a spec has in common: frozen, closed, documented; and its value ranges. Runs in every process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""Lower case letters, digits and inner hyphens, at most 63: also a valid name in MLflow, S3 and Kubernetes."""

VERSION = rf"^{NAME[1:-1]}(:{NAME[1:-1]}|@[A-Za-z0-9_-]{{1,64}})$"
"""Pattern by which a spec names a registered version."""
LOCKS = "graceful-lock-"
"""Prefix of the registered models that are locks of graceful; no name of a model family may begin with it."""
REFERENCE = rf"{NAME[1:-1]}(:{NAME[1:-1]}|@[\w-]{{1,255}})?"
"""Pattern by which people name a version, or the newest of a model: MODEL, MODEL:NUMBER, MODEL:NAME or MODEL@ALIAS."""
LARGEST_INTEGER = 2**63 - 1
"""Largest integer that every format and library on a number's way can hold."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Weight = Annotated[float, Field(ge=0.0, le=100.0)]
Count = Annotated[int, Field(ge=1)]


def unreserved(name: str) -> str:
    """Return the name of a model, or of one of its versions.

    Raises:
        ValueError: It is one that graceful uses itself.
    """
    if name.startswith(LOCKS):
        raise ValueError(f"must not begin with {LOCKS}, by which graceful names its locks in MLflow; choose another")
    return name


def _takes(annotation: Any, kind: type) -> bool:
    return annotation is kind or annotation is Any or kind in get_args(annotation)


class Section(BaseModel):
    """A frozen part of a spec that refuses unknown keys and numbers that are not finite.

    A field that is a union with a default (`train.optimizer`) may leave `kind` out: it is the default's kind then. Or
    it may be that word alone: `weighting: decay` is `weighting: {kind: decay}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe each key by the docstring below its field."""
        from graceful.section_docs import docstrings

        reference = handler(schema)
        properties = handler.resolve_ref_schema(reference)["properties"]
        for name, text in docstrings(cls).items():
            if name in properties:
                properties[name].setdefault("description", text)
        return reference

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        for name, field in cls.model_fields.items():
            if isinstance(values.get(name), bool) and not _takes(field.annotation, bool):
                got = f"got {str(values[name]).lower()}"
                raise ValueError(f"{name} must not be true or false (yes, no, on, off mean these in YAML), {got}")
        return {**values, **cls._default_kinds(values)}

    @model_validator(mode="after")
    def _holdable(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
                raise ValueError(
                    f"{name} must be at most {LARGEST_INTEGER}, got a number of {len(str(value))} characters"
                )
        return self

    @classmethod
    def _default_kinds(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        defaults: dict[str, Any] = {}
        for name, field in cls.model_fields.items():
            value = values.get(name)
            if field.discriminator != "kind" or not hasattr(field.default, "kind"):
                continue
            if isinstance(value, Mapping) and "kind" not in value:
                defaults[name] = {"kind": field.default.kind, **value}
            elif isinstance(value, str):
                defaults[name] = {"kind": value}
        return defaults
