"""An adapter on disk: which versions it stands between, and its arrays. Nothing in it is code. Driver, serving process.

    adapter.json         {"schema", "model", "name", "side", "kind", "share", "source", "target", "fitted",
                          "weights_sha256"}; source and target: name, model_id, digest, contract, dimension
    adapter.safetensors  the arrays of its map, float32

The digest of an adapter covers both files, and with the first one the digests of both versions and of their contracts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as parse_arrays
from safetensors.numpy import save as serialise_arrays

from graceful import section_errors, storage
from graceful.adapters.maps import Kind, Map
from graceful.adapters.sphere import slerp
from graceful.errors import DataError, IntegrityError, SpecError, one_line

DESCRIPTION, WEIGHTS = "adapter.json", "adapter.safetensors"
Side = Literal["queries", "gallery"]
_SHA256 = r"^[0-9a-f]{64}$"


class End(BaseModel):
    """A version whose vectors an adapter takes or returns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """MODEL:NAME, or of vectors from elsewhere what their file is called."""
    model_id: str = ""
    """Identity in the registry; empty: it has none."""
    digest: str = Field(pattern=_SHA256)
    """Digest of the version's bundle; for vectors from elsewhere, of their file."""
    contract: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of its embedding contract; empty: it has none."""
    dimension: int = Field(ge=1)


class Described(BaseModel):
    """What `adapter.json` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    model: str
    name: str
    side: Side
    """queries: new queries are mapped into the old gallery's space; gallery: the old gallery is mapped into the space
    of new queries."""
    kind: Kind
    share: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Share of the angle between the old version's embedding of a query and the mapped query; 1: the old version is not
    run."""
    source: End
    target: End
    fitted: dict[str, Any]
    """Pairs, options and agreement, for people."""
    weights_sha256: str = Field(pattern=_SHA256)


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """An adapter, ready to be used.

    Attributes:
        described: Description of its file.
        map: From the source's space into the target's.
        digest: The digest of the adapter.
    """

    described: Described
    map: Map
    digest: str

    def __call__(
        self, vectors: NDArray[np.floating[Any]], *, old: NDArray[np.floating[Any]] | None = None
    ) -> NDArray[np.float32]:
        """Map vectors of the source, [N, a] -> [N, b] of length 1.

        Args:
            vectors: By the source's version.
            old: [N, b] of the same samples by the target's version; needed where `share` is below 1.

        Raises:
            DataError: Vectors of another length.
            SpecError: `old` is needed.
        """
        mapped = self.map(vectors)
        share = self.described.share
        if share == 1.0:
            return mapped
        if old is None:
            raise SpecError(
                f"adapter {self.described.name}: lies {share:g} of the way from the vectors of"
                f" {self.described.target.name} to the mapped ones; run that version too, and give its vectors as `old`"
            )
        return slerp(old, mapped, share)

    def require_between(self, *, source: str, target: str) -> None:
        """Refuse to stand between other versions than those that it was fitted on.

        Args:
            source: Digest of the bundle whose vectors are mapped.
            target: Digest of that whose space they are mapped into.

        Raises:
            SpecError: It is another version's.
        """
        for end, digest in ((self.described.source, source), (self.described.target, target)):
            if end.digest != digest:
                raise SpecError(
                    f"adapter {self.described.name}: was fitted on {end.name} with digest {end.digest[:12]}..., got"
                    f" {digest[:12]}...; fit an adapter for this version"
                )


def save(folder: Path, fitted: Map, described: Mapping[str, Any]) -> Adapter:
    """Write the files of an adapter, each whole, the description last.

    Args:
        folder: Made if missing; an older adapter in it is replaced.
        fitted: Its map.
        described: The values of `Described` but for the digest of the weights.

    Raises:
        StorageError: The disk is full or refuses.
    """
    weights = serialise_arrays({name: np.ascontiguousarray(array) for name, array in fitted.arrays.items()})
    digest = hashlib.sha256(weights).hexdigest()
    document = Described(**described, weights_sha256=digest)
    storage.write_bytes(folder / WEIGHTS, weights)
    storage.write_json(folder / DESCRIPTION, document.model_dump(mode="json", by_alias=True))
    return load(folder)


def found(folder: Path) -> bool:
    """Return whether a folder holds an adapter, and not a version with a network."""
    return (folder / DESCRIPTION).is_file()


def load(folder: Path, *, expected_digest: str | None = None) -> Adapter:
    """Read an adapter.

    Args:
        folder: Where its files are.
        expected_digest: From the registry; None: only the weights are compared.

    Raises:
        IntegrityError: Bytes that do not have the recorded digest.
        DataError: No adapter, or files that do not fit each other or this graceful.
    """
    missing = [name for name in (DESCRIPTION, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder}: no adapter, {' and '.join(missing)} missing; run `graceful adapt` again")
    description, weights = storage.read_bytes(folder / DESCRIPTION), storage.read_bytes(folder / WEIGHTS)
    try:
        described = Described.model_validate_json(description)
    except ValidationError as e:
        problem = section_errors.summary(e, "document")
        raise DataError(f"{folder / DESCRIPTION}: {problem}; use the graceful release that wrote it") from e
    digest = digest_of(description, weights)
    for actual, expected in (
        (hashlib.sha256(weights).hexdigest(), described.weights_sha256),
        (digest, expected_digest or digest),
    ):
        if actual != expected:
            raise IntegrityError(
                f"{folder}: SHA-256 must be {expected[:12]}..., got {actual[:12]}...; fetch the adapter again",
                {"path": str(folder), "expected": expected, "found": actual},
            )
    return Adapter(described=described, map=_map_of(folder, described, weights), digest=digest)


def digest_of(description: bytes, weights: bytes) -> str:
    """Return the digest of an adapter, over both of its files."""
    parts = {DESCRIPTION: description, WEIGHTS: weights}
    return storage.sha256_json({name: hashlib.sha256(content).hexdigest() for name, content in parts.items()})


def _map_of(folder: Path, described: Described, weights: bytes) -> Map:
    try:
        arrays = parse_arrays(weights)
    except (SafetensorError, ValueError, KeyError) as e:
        raise DataError(f"{folder / WEIGHTS}: no arrays ({one_line(e):.200}); fetch the adapter again") from e
    fitted = Map(kind=described.kind, arrays=arrays)
    if (fitted.source, fitted.target) != (described.source.dimension, described.target.dimension):
        raise DataError(
            f"{folder}: maps {fitted.source} numbers to {fitted.target}, its description says"
            f" {described.source.dimension} to {described.target.dimension}; run `graceful adapt` again"
        )
    return fitted
