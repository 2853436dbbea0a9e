"""What embeddings of two models must have in common before one may query the index of the other. Driver and workers.

A query model records its contract in arch.json, which its digest covers; that of any other version follows from its
description, so older versions have one as well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from graceful import tasks
from graceful.spec import Task as TaskSection
from graceful.storage import sha256_json

METRIC, NORMALISATION = "cosine", "unit length"


@dataclass(frozen=True, kw_only=True)
class EmbeddingContract:
    """How embeddings are made and compared.

    Attributes:
        dimension: Length of an embedding.
        metric: How two are compared.
        normalisation: What is done to them before.
        preprocessing: SHA-256 of how raw items become inputs, augmentation and image size left out.
        resolution: Side of the images that the transform makes, in pixels; None: no images, or the task's own code.
    """

    dimension: int
    metric: str = METRIC
    normalisation: str = NORMALISATION
    preprocessing: str
    resolution: int | None

    def document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the contract."""
        return sha256_json(self.document())


def contract_of(section: TaskSection, embedding_size: int) -> EmbeddingContract:
    """Return the contract of a version.

    Args:
        section: Its task.
        embedding_size: d.
    """
    preprocessing, resolution = tasks.preprocessing(section)
    return EmbeddingContract(dimension=embedding_size, preprocessing=sha256_json(preprocessing), resolution=resolution)


def difference(query: EmbeddingContract, gallery: EmbeddingContract, *, allowed: Collection[str] = ()) -> str | None:
    """Return in what a query model differs from its gallery model, as a part of a sentence; None: in nothing."""
    own, other = query.document(), gallery.document()
    differing = [name for name in own if own[name] != other[name] and name not in allowed]
    return "; ".join(f"{name} {_shown(own[name])}, not {_shown(other[name])}" for name in differing) or None


def _shown(value: object) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)


def read(document: Mapping[str, Any]) -> EmbeddingContract:
    """Return a recorded contract.

    Raises:
        ValueError: It has other parts than contracts have.
    """
    try:
        return EmbeddingContract(**document)
    except TypeError as e:
        raise ValueError(f"contract: not an embedding contract ({e})") from e
