"""The version bundle: a registered version on disk, and how it becomes a predecessor again. Drivers and workers.

One folder with two files, neither of which is code:

    model.safetensors   state of the network, floating-point tensors as fp32
    arch.json           {"schema", "name", "model", "task", "classes", "embedding_size", "transform_digest",
                         "weights_sha256"}

The digest of a bundle covers both files. Weights are hashed before they are parsed, from the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as parse_weights
from safetensors.torch import save as serialise_weights
from torch import Tensor, nn

from graceful import storage
from graceful.chain import Predecessor, freeze
from graceful.errors import DataError, IntegrityError, NonFiniteError
from graceful.spec import PythonTask, RefreshSpec
from graceful.spec import Task as TaskSection
from graceful.tasks.base import Task

WEIGHTS = "model.safetensors"
DESCRIPTION = "arch.json"
_SHA256 = r"^[0-9a-f]{64}$"
_AUGMENTATION = ("shift", "flip")


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


def save(
    folder: str | Path,
    *,
    network: nn.Module,
    spec: RefreshSpec,
    classes: Sequence[str],
    embedding_size: int | None = None,
) -> str:
    """Write the two files of a bundle, each atomically, the description last.

    Args:
        folder: Made if missing; an older bundle in it is replaced.
        network: The trained network, whole (not sharded).
        spec: The resolved spec of the refresh that trained it.
        classes: Class names in the order of its logits.
        embedding_size: d; None: `network.embedding_size` if there is one, else read off one training sample.

    Returns:
        Digest of the bundle.

    Raises:
        NonFiniteError: A weight is NaN or infinite; such a version must never be registered.
        StorageError: The disk is full or refuses.
    """
    from graceful import tasks

    folder = Path(folder)
    weights = serialise_weights(_state(network))
    document = {
        "schema": 1,
        "name": spec.name,
        "model": spec.model,
        "task": spec.task.model_dump(mode="json"),
        "classes": list(classes),
        "embedding_size": embedding_size or _embedding_size(network, spec.task),
        "transform_digest": tasks.transform_digest(spec.task),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    storage.write_bytes(folder / WEIGHTS, weights)
    storage.write_json(folder / DESCRIPTION, document)
    return digest(folder)


def digest(folder: str | Path) -> str:
    """Digest of the bundle in a folder: SHA-256 over the SHA-256 of its two files.

    Raises:
        StorageError: A file is missing or cannot be read.
    """
    folder = Path(folder)
    return _digest(storage.read_bytes(folder / DESCRIPTION), storage.sha256_file(folder / WEIGHTS))


def describe(folder: str | Path) -> Description:
    """What a bundle says about its version, without its weights, which may be missing.

    Raises:
        DataError: The description does not fit this graceful.
        StorageError: It is missing or cannot be read.
    """
    folder = Path(folder)
    return _described(folder, storage.read_bytes(folder / DESCRIPTION))


def recorded_digest(folder: str | Path) -> str:
    """Digest of a bundle as its description records it; the weights are not looked at and may be missing."""
    description = storage.read_bytes(Path(folder) / DESCRIPTION)
    return _digest(description, describe(folder).weights_sha256)


def load(
    folder: str | Path,
    *,
    expected_digest: str | None = None,
    model_id: str | None = None,
    augment_like: TaskSection | None = None,
) -> Predecessor:
    """Rebuild a version as a frozen predecessor. torch's random state is left as it was.

    Args:
        folder: Where the two files are.
        expected_digest: What `save` returned, from the registry; None: only the weights are checked.
        model_id: Identity in the registry; None: `<model>-<name>`.
        augment_like: Task section of the version in training. The predecessor then draws its augmented views as that
            section does (shift, flip), so that both see the same view; clean inputs are unaffected. If both are Python
            tasks, this section's file is the one that runs: what a registry names is not trusted. None, or a task of
            another kind: as its own section says; a Python file then runs only if its content is the recorded one.

    Returns:
        The predecessor; its `notes` say when its transform may no longer be the one it was trained with.

    Raises:
        IntegrityError: Bytes that do not have the recorded digest: truncated, corrupt or exchanged files.
        DataError: No bundle, or a description or weights that do not fit each other or this graceful.
    """
    from graceful import tasks

    folder = Path(folder)
    described, weights, identity = _verified(folder, expected_digest)
    section = _trusted(_section(described, folder), augment_like)
    current = tasks.transform_digest(section)
    named_now = isinstance(augment_like, PythonTask)
    if isinstance(section, PythonTask) and not named_now and current != described.transform_digest:
        raise DataError(
            f"{folder / DESCRIPTION}: {section.file} is not the file {described.name} was saved with; restore that file"
        )
    task = tasks.build(section)
    network = _network(task, described.classes)
    _fill(network, weights, path=folder / WEIGHTS, described=described)
    viewed = _augmented(section, augment_like)
    return Predecessor(
        name=described.name,
        model_id=model_id or f"{described.model}-{described.name}",
        digest=identity,
        classes=described.classes,
        embedding_size=described.embedding_size,
        network=freeze(network),
        transform=(task if viewed is section else tasks.build(viewed)).transform,
        transform_digest=current if viewed is section else tasks.transform_digest(viewed),
        notes=_notes(described, current),
        training_ids=lambda: task.samples("train").ids,
    )


# --- saving -----------------------------------------------------------------------------------------------------------


def _state(network: nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU, floating-point as fp32; tensors that share storage are written once each."""
    state = {}
    for name, tensor in network.state_dict().items():
        copied = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
        if not bool(torch.isfinite(copied).all()):
            raise NonFiniteError(f"weights {name}: not finite; the version is not saved, train again with a lower lr")
        state[name] = copied.contiguous()
    return state


def _embedding_size(network: nn.Module, section: TaskSection) -> int:
    declared = getattr(network, "embedding_size", None)
    if isinstance(declared, int):
        return declared
    import numpy as np

    from graceful import tasks

    task = tasks.build(section)
    items = task.samples("train").read(np.zeros(1, dtype=np.int64))
    device = next(network.parameters()).device
    with torch.no_grad():
        return int(network.embed(task.transform(items, None).to(device)).shape[1])  # type: ignore[operator]


def _digest(description: bytes, weights_sha256: str) -> str:
    return storage.sha256_json({DESCRIPTION: hashlib.sha256(description).hexdigest(), WEIGHTS: weights_sha256})


# --- loading ----------------------------------------------------------------------------------------------------------


def _verified(folder: Path, expected: str | None) -> tuple[Description, bytes, str]:
    """Description, weights and digest, each file read once; no tensor is parsed before the digests are right."""
    missing = [name for name in (DESCRIPTION, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder}: no version bundle, {' and '.join(missing)} missing; fetch the version again")
    description, weights = storage.read_bytes(folder / DESCRIPTION), storage.read_bytes(folder / WEIGHTS)
    found = hashlib.sha256(weights).hexdigest()
    identity = _digest(description, found)
    _same(identity, expected, folder)
    described = _described(folder, description)
    _same(found, described.weights_sha256, folder / WEIGHTS)
    return described, weights, identity


def _described(folder: Path, description: bytes) -> Description:
    try:
        return Description.model_validate_json(description)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise DataError(
            f"{folder / DESCRIPTION}: {where}: {first['msg'].lower()}; fetch the version again, or use the graceful"
            " release that wrote it"
        ) from e


def _same(found: str, expected: str | None, path: Path) -> None:
    if expected is not None and found != expected:
        raise IntegrityError(
            f"{path}: SHA-256 must be {expected[:12]}..., got {found[:12]}...; fetch the version again",
            {"path": str(path), "expected": expected, "found": found},
        )


def _section(described: Description, folder: Path) -> TaskSection:
    try:
        section: TaskSection = TypeAdapter(TaskSection).validate_python(described.task)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        where = ".".join(["task", *(str(part) for part in first["loc"])])
        raise DataError(
            f"{folder / DESCRIPTION}: {where}: {first['msg'].lower()}; use the graceful release that wrote it"
        ) from e
    return section


def _trusted(section: TaskSection, like: TaskSection | None) -> TaskSection:
    """Replace a recorded Python file by the one the user names now."""
    if isinstance(section, PythonTask) and isinstance(like, PythonTask):
        return section.model_copy(update={"file": like.file})
    return section


def _network(task: Task, classes: tuple[str, ...]) -> nn.Module:
    """Build with a throw-away random state, so that loading predecessors changes no later initialisation."""
    with torch.random.fork_rng(devices=[]):
        return task.network(classes)


def _fill(network: nn.Module, weights: bytes, *, path: Path, described: Description) -> None:
    try:
        state = parse_weights(weights)
    except (SafetensorError, ValueError) as e:
        reason = " ".join(str(e).split())
        raise DataError(f"{path}: not a safetensors file ({reason}); fetch the version again") from e
    problem = _difference(network.state_dict(), state)
    if problem:
        cause = (
            "its Python file has changed" if described.task.get("kind") == "python" else "the network's code differs"
        )
        raise DataError(f"{path}: {problem}; {cause}, restore what version {described.name} was trained with")
    network.load_state_dict(state)
    declared = getattr(network, "embedding_size", described.embedding_size)
    if declared != described.embedding_size:
        raise DataError(
            f"{path.parent / DESCRIPTION}: embedding_size must be {declared}, got {described.embedding_size};"
            " fetch the version again"
        )


def _difference(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """First difference between two states by name and shape."""
    for name, tensor in wanted.items():
        if name not in given:
            return f"tensor {name} is missing"
        if given[name].shape != tensor.shape:
            return f"tensor {name} must have shape {list(tensor.shape)}, got {list(given[name].shape)}"
    extra = [name for name in given if name not in wanted]
    return f"tensor {extra[0]} is not part of the network" if extra else None


def _augmented(section: TaskSection, like: TaskSection | None) -> TaskSection:
    if like is None or like.kind != section.kind:
        return section
    changes = {
        field: getattr(like, field)
        for field in _AUGMENTATION
        if hasattr(section, field) and getattr(like, field) != getattr(section, field)
    }
    return section.model_copy(update=changes) if changes else section


def _notes(described: Description, transform_digest: str) -> tuple[str, ...]:
    if transform_digest == described.transform_digest:
        return ()
    source = f"{described.task['file']} changed" if described.task.get("kind") == "python" else "the code changed"
    return (f"{described.name}: {source} since this version was saved; its transform may differ from training",)
