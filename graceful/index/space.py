"""`Space`: the identity of the model that made a vector, and how such vectors are compared. Driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from graceful.errors import DataError, SpecError
from graceful.storage import sha256_json

METRIC = "cosine"
"""The only metric; embedding contracts require cosine, and vectors are normalised before they are stored."""
LONGEST_NAME = 200


@dataclass(frozen=True, kw_only=True)
class Space:
    """The vectors of one model.

    Attributes:
        name: The name of the space, e.g. `glyphs-v3`, which is unique in an index.
        dimension: The number of components of a vector.
        model: The digest of the bundle of the version; for a model that graceful did not train, a name from its user.
        contract: The SHA-256 of the embedding contract of the version; an empty text if there is none.
        adapter: The digest of the adapter that maps vectors of another model into this space; an empty text if the
            model makes them itself.
        model_id: The identity of the version in the registry, which is not part of the fingerprint; an empty text if
            there is none.
        metric: The metric by which vectors are compared.
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
        """The SHA-256 of the attributes that determine the vectors; vectors of equal fingerprints may be compared."""
        parts = asdict(self)
        return sha256_json({key: parts[key] for key in ("dimension", "model", "contract", "adapter", "metric")})

    @classmethod
    def declared(cls, name: str, dimension: int, *, model: str = "", metric: str = METRIC) -> Self:
        """Return the space of a model that graceful did not train, which a name from its user identifies.

        Args:
            name: The name of the space.
            dimension: The number of components of a vector.
            model: The model and its revision; an empty text takes the name of the space.
            metric: The metric by which vectors are compared.
        """
        return cls(name=name, dimension=dimension, model=model or name, metric=metric)

    def document(self) -> dict[str, Any]:
        """Return the space as JSON values, with its fingerprint."""
        return {**asdict(self), "fingerprint": self.fingerprint}

    @classmethod
    def read(cls, document: Mapping[str, Any], *, where: str) -> Self:
        """Read a space that `document` wrote.

        Raises:
            DataError: Attributes are missing or unknown, or the fingerprint is not that of the attributes.
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
