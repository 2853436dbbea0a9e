"""The files of a version bundle: their names, their digests, and what `arch.json` says. Drivers and workers.

No tensor is parsed here and no code is run: the content of a file is used only after its SHA-256 was compared.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from graceful import section_errors, storage
from graceful.chain import Completeness
from graceful.errors import DataError, IntegrityError
from graceful.models.assets import MOST, NAME

WEIGHTS = "model.safetensors"
HEAD = "head.safetensors"
DESCRIPTION = "arch.json"
REMOVABLE = (WEIGHTS, HEAD)
"""Files without which a bundle still says what it was."""
_SHA256 = r"^[0-9a-f]{64}$"


class LinearisedDescription(BaseModel):
    """How a version that was linearised answers, and what certifies it, see `graceful.lqf`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    names: tuple[str, ...] = Field(min_length=1)
    """Parameters with a delta."""
    slope: float = Field(ge=0.0)
    """Slope of leaky activations."""
    temperature: float = Field(gt=0.0)
    """Temperature by which logits are divided."""
    amplitude: float = Field(gt=0.0)
    """Target of the right class."""
    start_sha256: str = Field(pattern=_SHA256)
    """SHA-256 of the starting weights; deltas of versions with the same ones may be combined."""
    start_from: str
    """Origin of the starting weights."""
    unseen: bool
    """Whether they were made without the labels of the training samples."""
    certificate: dict[str, Any]
    files: dict[Annotated[str, Field(pattern=NAME)], Annotated[str, Field(pattern=_SHA256)]] = Field(
        default={}, max_length=MOST, exclude_if=lambda files: not files
    )
    """Files that are kept beside the weights, by name: see `lqf.contributions`."""


class Description(BaseModel):
    """What `arch.json` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = Field(alias="schema")
    name: str
    model: str
    task: dict[str, Any]
    classes: tuple[str, ...] = Field(min_length=1)
    embedding_size: int = Field(ge=1)
    transform_digest: str
    weights_sha256: str = Field(pattern=_SHA256)
    head_sha256: str | None = Field(default=None, pattern=_SHA256)
    assets: dict[Annotated[str, Field(pattern=NAME)], Annotated[str, Field(pattern=_SHA256)]] = Field(
        default={}, max_length=MOST
    )
    contract: dict[str, Any] | None = None
    linearised: LinearisedDescription | None = None

    @field_validator("classes")
    @classmethod
    def _compose_letters(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        """Compose the letters of class folders, which older versions recorded as they were spelled on disk."""
        if info.data.get("task", {}).get("kind") != "image_folder":
            return names
        return tuple(unicodedata.normalize("NFC", name) for name in names)


def digest_of(description: bytes, weights_sha256: str) -> str:
    """Return the digest of a bundle, over its description and the SHA-256 of its weights."""
    return storage.sha256_json({DESCRIPTION: hashlib.sha256(description).hexdigest(), WEIGHTS: weights_sha256})


class BundleContents(NamedTuple):
    """The verified contents of a bundle; `weights` are the bytes of its largest remaining file."""

    described: Description
    digest: str
    completeness: Completeness
    weights: bytes


def read_verified(folder: Path, expected: str | None, at_least: Completeness) -> BundleContents:
    """Return the verified contents of a bundle; each file is read once.

    Args:
        folder: The folder of the bundle.
        expected: Its digest, from the registry; None: only the weights are compared.
        at_least: What the bundle must still contain.

    Raises:
        IntegrityError: A file has another digest.
        DataError: Too little is left, or the description does not fit this graceful.
    """
    path = folder / DESCRIPTION
    present = [part for part in (WEIGHTS, HEAD) if (folder / part).is_file()]
    completeness = (
        {WEIGHTS: Completeness.WHOLE, HEAD: Completeness.HEAD}[present[0]] if present else Completeness.NOTHING
    )
    missing = [DESCRIPTION] if not path.is_file() else []
    missing += [WEIGHTS] if completeness is not Completeness.WHOLE and at_least is Completeness.WHOLE else []
    missing += [HEAD] if completeness is Completeness.NOTHING and at_least is Completeness.HEAD else []
    if missing:
        raise DataError(f"{folder}: no version bundle, {' and '.join(missing)} missing; fetch the version again")
    description = storage.read_bytes(path)
    weights = storage.read_bytes(folder / present[0]) if present else b""
    actual = hashlib.sha256(weights).hexdigest()
    if completeness is Completeness.WHOLE:
        require_same_digest(digest_of(description, actual), expected, folder)
    described = parse_description(folder, description)
    identity = digest_of(description, described.weights_sha256)
    require_same_digest(identity, expected, folder)
    recorded = {
        Completeness.WHOLE: described.weights_sha256,
        Completeness.HEAD: described.head_sha256 or "none",
        Completeness.NOTHING: actual,
    }
    require_same_digest(actual, recorded[completeness], folder / present[0] if present else folder)
    return BundleContents(described, identity, completeness, weights)


def read_beside(folder: Path, files: Mapping[str, str]) -> dict[str, bytes]:
    """Return the content of files beside the weights, each compared with its digest.

    Args:
        folder: The folder of the bundle.
        files: Name -> SHA-256, from its description.

    Raises:
        DataError: One is missing.
        IntegrityError: One has another digest.
    """
    contents = {}
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path}: missing; fetch the version again")
        contents[name] = storage.read_bytes(path)
        require_same_digest(hashlib.sha256(contents[name]).hexdigest(), expected, path)
    return contents


def parse_description(folder: Path, description: bytes) -> Description:
    """Return what the bytes of `arch.json` say.

    Raises:
        DataError: They do not fit this graceful.
    """
    try:
        return Description.model_validate_json(description)
    except ValidationError as e:
        problem = section_errors.summary(e, "document")
        raise DataError(
            f"{folder / DESCRIPTION}: {problem}; fetch the version again, or use the graceful release that wrote it"
        ) from e


def require_same_digest(actual: str, expected: str | None, path: Path) -> None:
    """Refuse a SHA-256 that is not the expected one.

    Raises:
        IntegrityError: With the path.
    """
    if expected is not None and actual != expected:
        raise IntegrityError(
            f"{path}: SHA-256 must be {expected[:12]}..., got {actual[:12]}...; fetch the version again",
            {"path": str(path), "expected": expected, "found": actual},
        )
