"""The version bundle: a registered version on disk. Used by drivers and workers.

One folder, and nothing in it is code:

    arch.json           {"schema", "name", "model", "task", "classes", "embedding_size", "transform_digest",
                         "weights_sha256", "head_sha256", "assets"}
    model.safetensors   state of the network, floating-point tensors as fp32; of a network with adapters without the
                        weights of its checkpoint, which `assets/base.json` names by their SHA-256
    head.safetensors    the part of it that classifies, if that is the submodule `head`
    assets/             files that its learner needs beside weights, if it names any, see `assets`

Either file of weights may be deleted later to save storage: the version keeps its digest, which covers arch.json and
the SHA-256 of the weights that arch.json names, and `load` says what is left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise_weights
from torch import nn

from graceful import storage
from graceful.learners import KeepsAssets, learner_of, run
from graceful.learners.batch import to_device
from graceful.models import assets, bases
from graceful.models import weights as parts
from graceful.models.bundle_files import (
    DESCRIPTION,
    HEAD,
    WEIGHTS,
    Description,
    LinearisedDescription,
    digest_of,
    parse_description,
    read_beside,
)
from graceful.models.bundle_loading import linearised_as, load, section_of
from graceful.models.embedding_contract import contract_of
from graceful.spec import RefreshSpec
from graceful.tasks.base import Task

__all__ = ["base_of", "describe", "digest", "files_of", "linearised_as", "load", "recorded_digest", "save"]


def save(
    folder: str | Path,
    *,
    network: nn.Module,
    spec: RefreshSpec,
    classes: Sequence[str],
    embedding_size: int | None = None,
    task: Task | None = None,
    linearised: LinearisedDescription | None = None,
    beside: Path | None = None,
) -> str:
    """Write the files of a bundle, each atomically, the description last.

    Args:
        folder: Made if missing; an older bundle in it is replaced.
        network: The trained network, whole (not sharded).
        spec: The resolved spec of the refresh that trained it.
        classes: Class names in the order of its logits.
        embedding_size: d; None: `network.embedding_size` if there is one, else read off one training sample.
        task: The spec's task, if it is built already.
        linearised: Of a network that is a `Linearised`; None: it is none.
        beside: Folder that has the files which `linearised` names; None: it names none.

    Returns:
        Digest of the bundle.

    Raises:
        NonFiniteError: A weight is NaN or infinite; such a version must never be registered.
        StorageError: The disk is full or refuses.
    """
    from graceful import tasks

    folder, task = Path(folder), task or tasks.build(spec.task)
    weight_bytes = serialise_weights(parts.state_of(network))
    size, kept_files = embedding_size or _embedding_size(network, task), files_of(task)
    head = parts.head_of(network, embedding_size=size)
    head_bytes = None if head is None else serialise_weights(head)
    document = _document(spec, classes, size, weights=weight_bytes, head=head_bytes)
    if kept_files:
        document["assets"] = assets.digests(kept_files)
    if spec.gallery:
        document["contract"] = contract_of(spec.task, size).document()
    if linearised is not None:
        document["linearised"] = linearised.model_dump(mode="json")
    storage.write_bytes(folder / WEIGHTS, weight_bytes)
    if head_bytes is None:
        (folder / HEAD).unlink(missing_ok=True)
    else:
        storage.write_bytes(folder / HEAD, head_bytes)
    assets.write(folder, kept_files)
    if linearised is not None and beside is not None:
        for name, content in read_beside(beside, linearised.files).items():
            storage.write_bytes(folder / name, content)
    storage.write_json(folder / DESCRIPTION, document)
    return digest(folder)


def files_of(task: Task) -> dict[str, bytes]:
    """Return the files that a version of a task keeps beside its weights, by name; empty where its learner names none.

    Raises:
        SpecError: Names or contents that no version can keep.
    """
    learner = learner_of(task)
    if not isinstance(learner, KeepsAssets):
        return {}
    path = getattr(learner, "path", "task")
    return assets.encode(learner.assets(), owner=f"{path}: assets() of the learner")


def digest(folder: str | Path) -> str:
    """Return the digest of the bundle in a folder: SHA-256 over those of description and weights.

    Raises:
        StorageError: A file is missing or cannot be read.
    """
    folder = Path(folder)
    return digest_of(storage.read_bytes(folder / DESCRIPTION), storage.sha256_file(folder / WEIGHTS))


def describe(folder: str | Path) -> Description:
    """Return the description of a bundle's version; the weights are not read and may be missing.

    Raises:
        DataError: The description does not fit this graceful.
        StorageError: It is missing or cannot be read.
    """
    folder = Path(folder)
    return parse_description(folder, storage.read_bytes(folder / DESCRIPTION))


def recorded_digest(folder: str | Path) -> str:
    """Return the digest of a bundle as its description records it; the weights are not read and may be missing."""
    description = storage.read_bytes(Path(folder) / DESCRIPTION)
    return digest_of(description, describe(folder).weights_sha256)


def base_of(folder: str | Path) -> bases.Base | None:
    """Return which weights of a checkpoint a bundle needs; None where it has all of its own, or has lost them.

    Raises:
        DataError, IntegrityError: The bundle is damaged.
    """
    folder = Path(folder)
    described = describe(folder)
    if bases.FILE not in described.assets or not (folder / WEIGHTS).is_file():
        return None
    document = assets.read(folder, {bases.FILE: described.assets[bases.FILE]})[bases.FILE]
    network: Any = getattr(section_of(described, folder), "network", None)
    return bases.of(network, document)


def _document(
    spec: RefreshSpec, classes: Sequence[str], size: int, *, weights: bytes, head: bytes | None
) -> dict[str, Any]:
    """Return what the description of every bundle holds, as JSON values."""
    from graceful import tasks

    return {
        "schema": 1,
        "name": spec.name,
        "model": spec.model,
        "task": spec.task.model_dump(mode="json"),
        "classes": list(classes),
        "embedding_size": size,
        "transform_digest": tasks.transform_digest(spec.task),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "head_sha256": None if head is None else hashlib.sha256(head).hexdigest(),
    }


def _embedding_size(network: nn.Module, task: Task) -> int:
    declared = getattr(network, "embedding_size", None)
    if isinstance(declared, int):
        return declared
    import numpy as np

    items = task.samples("train").read(np.zeros(1, dtype=np.int64))
    device, training = next(network.parameters()).device, network.training
    network.eval()  # batch normalisation in train mode refuses a single sample
    learner = learner_of(task)
    with torch.no_grad():
        outputs = run(learner, network, to_device(learner.collate(items, None), device))
    network.train(training)
    return int(outputs.embedding.shape[1])
