"""Rebuild a predecessor from a version bundle: choose the code that runs, read what is kept, load the network.

Runs in drivers and workers.
`graceful.models.bundle` describes the files. Weights are hashed before they are parsed, from the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from graceful import section_errors
from graceful.chain import Completeness, Predecessor, Unrunnable, freeze
from graceful.errors import DataError
from graceful.learners import Classifier, learner_of, registry
from graceful.lqf.network import Linearised
from graceful.models import assets, bases, embedding_contract, recorded_code
from graceful.models import weights as parts
from graceful.models.bundle_files import (
    DESCRIPTION,
    HEAD,
    WEIGHTS,
    BundleContents,
    Description,
    LinearisedDescription,
    read_verified,
)
from graceful.models.embedding_contract import EmbeddingContract, contract_of
from graceful.spec import PythonTask
from graceful.spec import Task as TaskSection
from graceful.tasks.base import Task
from graceful.tasks.names import Column

_AUGMENTATION = ("shift", "flip", "augment")
"""Keys of a task section that say how views of a sample are drawn."""


def load(
    folder: str | Path,
    *,
    expected_digest: str | None = None,
    model_id: str | None = None,
    augment_like: TaskSection | None = None,
    trusted: Collection[str] = (),
    at_least: Completeness = Completeness.WHOLE,
    task: Task | None = None,
) -> Predecessor:
    """Rebuild a version as a frozen predecessor. torch's random state is left as it was.

    Args:
        folder: Where its files are.
        expected_digest: What `save` returned, from the registry; None: only the weights are checked.
        model_id: Identity in the registry; None: `<model>-<name>`.
        augment_like: Task section of the version in training. The predecessor then draws its augmented views as that
            section does (shift, flip), so that both see the same view; clean inputs are unaffected. If both are Python
            tasks, this section's file is the one that runs. None, or a task of another kind: as its own section says.
        trusted: Digests of recorded code that may run; other code is not, because a person who may write to a registry
            may name any code there.
        at_least: What of it must be left; less is refused.
        task: Its task, where the caller has just built it from the recorded section.

    Returns:
        The predecessor; its `notes` say when its transform may no longer be the one it was trained with, its
        `completeness` what is left of it. Where its code is not run, nothing is, and its `unrunnable` says why.

    Raises:
        IntegrityError: Bytes that do not have the recorded digest: truncated, corrupt or exchanged files.
        DataError: No bundle, a description or weights that do not fit each other or this graceful, or code that is not
            run though the version must be.
    """
    from graceful import tasks

    folder = Path(folder)
    contents = read_verified(folder, expected_digest, at_least)
    described, model_id = contents.described, model_id or f"{contents.described.model}-{contents.described.name}"
    code = _chosen_code(described, folder, augment_like=augment_like, trusted=trusted, built=task is not None)
    if isinstance(code, Unrunnable):
        return _unrunnable(contents, code, folder=folder, model_id=model_id, at_least=at_least)
    section, allowed = code
    current = tasks.transform_digest(section)
    if allowed is not None:
        _require_same_file(described, current, folder)
    values = _kept_files(folder, contents)
    task = _with_assets(task or tasks.build(section, trusted=allowed), values)
    viewed = _augmenting_section(section, augment_like)
    return Predecessor(
        name=described.name,
        model_id=model_id,
        digest=contents.digest,
        classes=described.classes,
        embedding_size=described.embedding_size,
        network=freeze(_load_network(task, folder, contents)),
        learner=learner_of(task if viewed is section else _with_assets(tasks.build(viewed), values)),
        transform_digest=current if viewed is section else tasks.transform_digest(viewed),
        notes=_notes(described, current),
        training_ids=lambda: _training_ids(task),
        completeness=contents.completeness,
        model=described.model,
        contract=embedding_contract_of(described, section),
    )


def _require_same_file(described: Description, transform_digest: str, folder: Path) -> None:
    if transform_digest != described.transform_digest:
        changed = f"{described.task['file']} is not the file {described.name} was saved with"
        raise DataError(f"{folder / DESCRIPTION}: {changed}; restore that file")


def embedding_contract_of(described: Description, section: TaskSection) -> EmbeddingContract:
    """Return the embedding contract of a version: as it recorded it, else as its description implies it.

    Args:
        described: Description of its bundle.
        section: Its task, read from the description.

    Raises:
        DataError: The recorded one is none.
    """
    if described.contract is None:
        return contract_of(section, described.embedding_size)
    try:
        return embedding_contract.read(described.contract)
    except ValueError as e:
        raise DataError(f"{described.name}: {e}; fetch the version again") from e


def section_of(described: Description, folder: Path) -> TaskSection:
    """Return the task section that a description records.

    Raises:
        DataError: It does not fit this graceful.
    """
    try:
        section: TaskSection = TypeAdapter(TaskSection).validate_python(described.task)
    except ValidationError as e:
        problem = section_errors.summary(e, "document", at="task")
        raise DataError(f"{folder / DESCRIPTION}: {problem}; use the graceful release that wrote it") from e
    return section


def _chosen_code(
    described: Description,
    folder: Path,
    *,
    augment_like: TaskSection | None,
    trusted: Collection[str],
    built: bool,
) -> tuple[TaskSection, Collection[str] | None] | Unrunnable:
    """Return the section to build the task from, with the digests that its code must have (None: the user's own code),
    or why recorded code is not run. Arguments as of `load`; `built`: the caller has the task already."""
    section = section_of(described, folder)
    learner = getattr(section, "learner", None)
    missing = None if learner is None else registry.unavailable(learner.kind)
    if missing is not None:
        return Unrunnable(missing, "install the package that offers it")
    if not isinstance(section, PythonTask):
        return section, None
    if isinstance(augment_like, PythonTask):
        return section.model_copy(update={"file": augment_like.file}), None
    if built:
        return section, None
    refused = recorded_code.refusal(section, recorded=described.transform_digest, trusted=trusted)
    return (section, trusted) if refused is None else refused


def _unrunnable(
    contents: BundleContents, refused: Unrunnable, *, folder: Path, model_id: str, at_least: Completeness
) -> Predecessor:
    """Return a predecessor made from the description alone; only its cached outputs can be used."""
    described = contents.described
    if at_least is not Completeness.NOTHING:
        raise DataError(f"{folder}: {described.name} cannot be run, {refused.reason}; {refused.remedy}")

    def transform(items: Any, views: Any) -> torch.Tensor:
        raise DataError(f"{described.name}: cannot be run, {refused.reason}; {refused.remedy}")

    return Predecessor(
        name=described.name,
        model_id=model_id,
        digest=contents.digest,
        classes=described.classes,
        embedding_size=described.embedding_size,
        network=nn.Module(),
        learner=Classifier(transform),
        transform_digest=described.transform_digest,
        completeness=Completeness.NOTHING,
        model=described.model,
        unrunnable=refused,
    )


def _training_ids(task: Task) -> Column:
    train = task.samples("train")
    if train.stream is not None:
        raise DataError("they are a stream")
    return train.ids


def _with_assets(task: Task, values: Mapping[str, Any]) -> Task:
    """Return the task with the learner that has these assets; the same one where the version was saved without any."""
    restored = getattr(task, "restored", None)
    return restored(values) if values and restored is not None else task


def _kept_files(folder: Path, contents: BundleContents) -> dict[str, Any]:
    """Return what a version keeps beside its weights, by name."""
    values = assets.read(folder, contents.described.assets)
    if contents.completeness is not Completeness.WHOLE:
        values.pop(bases.FILE, None)  # the body is not run, so the weights of its checkpoint are not looked for
    return values


def _load_network(task: Task, folder: Path, contents: BundleContents) -> nn.Module:
    """Return the network with its weights; a forked random state leaves every later initialisation as it was."""
    described = contents.described
    if contents.completeness is Completeness.NOTHING:
        return nn.Module()
    with torch.random.fork_rng(devices=[]):
        network = task.network(described.classes)
    if described.linearised is not None:
        network = linearised_as(network, described.linearised)
    path = folder / (WEIGHTS if contents.completeness is Completeness.WHOLE else HEAD)
    kind = str(described.task.get("kind"))
    parts.fill(
        network,
        contents.weights,
        path=path,
        name=described.name,
        kind=kind,
        head_only=contents.completeness is Completeness.HEAD,
    )
    declared = getattr(network, "embedding_size", described.embedding_size)
    if declared != described.embedding_size:
        raise DataError(
            f"{folder / DESCRIPTION}: embedding_size must be {declared}, got {described.embedding_size};"
            " fetch the version again"
        )
    return network


def linearised_as(network: nn.Module, description: LinearisedDescription) -> Linearised:
    """Return a network as a description says that it was linearised; its weights are filled in later.

    Raises:
        DataError: The network lacks a parameter with a delta.
    """
    missing = set(description.names) - {name for name, _ in network.named_parameters()}
    if missing:
        raise DataError(f"the network has no parameter {min(missing)}, which has a delta; restore its code")
    return Linearised(network, description.names, slope=description.slope, temperature=description.temperature)


def _augmenting_section(section: TaskSection, like: TaskSection | None) -> TaskSection:
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
