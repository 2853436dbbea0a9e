"""Which model made a vector, and how such vectors are compared. Driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from graceful.errors import DataError, SpecError
from graceful.storage import sha256_json

METRIC = "cosine"
"""The only metric: embedding contracts say cosine and unit length, and vectors are normalised when they are stored."""
LONGEST_NAME = 200


@dataclass(frozen=True, kw_only=True)
class Space:
    """The vectors of one model.

    Attributes:
        name: As people write it, e.g. `glyphs-v3`; unique in an index.
        dimension: Length of a vector.
        model: Digest of the version's bundle; for a model that graceful did not train, what its user calls it.
        contract: SHA-256 of its embedding contract; empty where there is none.
        adapter: Digest of the adapter that maps another model's vectors into this space; empty: the model itself.
        model_id: Identity of the version in the registry; empty where there is none. No part of the fingerprint.
        metric: How vectors are compared.
    """

    name: str
    dimension: int
    model: str
    contract: str = ""
    adapter: str = ""
    model_id: str = ""
    metric: str = METRIC

    def __post_init__(self) -> None:
        if (
            not self.name
            or not self.name.isprintable()
            or len(self.name) > LONGEST_NAME
            or self.name != self.name.strip()
        ):
            raise SpecError(f"space {self.name[:60]!r}: must be a printable name of 1 to {LONGEST_NAME} characters")
        if type(self.dimension) is not int or self.dimension < 1:
            raise DataError(f"space {self.name}: dimension must be a whole number from 1 on, got {self.dimension!r}")
        if self.metric != METRIC:
            raise DataError(
                f"space {self.name}: metric {self.metric!r}, an index compares by {METRIC}; normalise the vectors, or"
                f" declare them as {METRIC}"
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what determines the vectors: two spaces with the same one may be compared."""
        parts = asdict(self)
        return sha256_json({key: parts[key] for key in ("dimension", "model", "contract", "adapter", "metric")})

    @classmethod
    def declared(cls, name: str, dimension: int, *, model: str = "", metric: str = METRIC) -> Self:
        """Return the space of a model that graceful did not train: what its user calls it identifies it.

        Args:
            name: Of the space.
            dimension: Length of a vector.
            model: Model and revision; empty: the name of the space.
            metric: How its vectors are compared.
        """
        return cls(name=name, dimension=dimension, model=model or name, metric=metric)

    def document(self) -> dict[str, Any]:
        """Return it as JSON values, with its fingerprint."""
        return {**asdict(self), "fingerprint": self.fingerprint}

    @classmethod
    def read(cls, document: Mapping[str, Any], *, where: str) -> Self:
        """Return a space that `document` wrote.

        Raises:
            DataError: It has other parts, or another fingerprint than its parts.
        """
        parts = dict(document)
        fingerprint = parts.pop("fingerprint", None)
        try:
            space = cls(**parts)
        except TypeError as e:
            raise DataError(f"{where}: no description of a space ({e}); build the index or write the file again") from e
        if fingerprint is not None and space.fingerprint != fingerprint:
            raise DataError(f"{where}: the fingerprint of space {space.name} is not that of its parts; it was altered")
        return space
