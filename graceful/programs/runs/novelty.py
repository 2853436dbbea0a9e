"""Decide from digests, before any training, whether a refresh would repeat a version. Runs in the driver.

The same recipe on the same data gives the champion again, under another name and at full price. What a version was
trained from stands in its lineage record; the recipe is compared through the digest of its spec under the same name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graceful import tasks
from graceful.lineage import LineageRecord, Store
from graceful.programs.runs.ancestry import find
from graceful.programs.runs.run import Run
from graceful.spec import RefreshSpec
from graceful.spec import Task as TaskSection

DATA, TRANSFORM = "data", "transform"
SHOWN = 12
"""Characters of a digest in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A refresh that was not made, as JSON values.

    Attributes:
        run_id: `model-name`.
        outcome: skipped.
        reasons: One sentence.
        champion: Number of the version that goes on serving; None: none does.
        spec_digest: SHA-256 of the spec.
    """

    run_id: str
    outcome: str
    reasons: tuple[str, ...]
    champion: int | None
    spec_digest: str


def ingredients(section: TaskSection, *, data: str) -> dict[str, str]:
    """Return what a version is trained from, besides its spec, for its lineage record.

    Args:
        section: The spec's task; a Python task counts with the content of its file.
        data: Digest of the training samples.
    """
    return {DATA: data, TRANSFORM: tasks.transform_digest(section)}


def nothing_new(spec: RefreshSpec, trained_from: Mapping[str, str], version: LineageRecord) -> str | None:
    """Return why a refresh would repeat a version; None if it would not.

    Args:
        spec: What would be trained.
        trained_from: Its `ingredients`.
        version: The champion, or the newest attempt to follow it.

    Returns:
        One sentence. None too where the record does not say what the version was trained from, or where it is this
        very version: that refresh is finished, and repeats its result.
    """
    if version.name == spec.name or version.training != dict(trained_from):
        return None
    if spec.model_copy(update={"name": version.name}).digest() != version.spec_digest:
        return None
    held_note = ", which was held" if version.verdict == "held" else ""
    return f"no new data since {version.model}@{version.version}{held_note} (sha256 {trained_from[DATA][:SHOWN]})"


def skipped(run: Run) -> Skipped | None:
    """Look at the data and the registry; None: there is something to learn. Changes nothing.

    A version that was held counts like the champion that it was to follow: the gate would hold it again.

    Raises:
        SpecError, DataError: The task cannot be built.
        RegistryError: Unreachable.
    """
    spec, store = run.spec, run.store
    champion = next(iter(store.chain(spec.model)), None)
    attempts = (champion, _attempt(store, spec.model, champion))
    candidates = [item for item in attempts if item is not None and item.training and searches(store, spec, item)]
    if not candidates:
        return None
    trained_from = ingredients(spec.task, data=tasks.build(spec.task).samples("train").digest)
    reason = next((reason for item in candidates if (reason := nothing_new(spec, trained_from, item))), None)
    if reason is None:
        return None
    return Skipped(
        run_id=spec.run_id,
        outcome="skipped",
        reasons=(reason,),
        champion=None if champion is None else champion.version,
        spec_digest=spec.digest(),
    )


def searches(store: Store, spec: RefreshSpec, version: LineageRecord) -> bool:
    """Return whether a version was trained against the gallery model that a spec names now; an alias may have moved."""
    if spec.gallery is None:
        return True
    gallery = next((edge.model_id for edge in version.edges if edge.relation == "gallery"), None)
    return find(store, spec.gallery.version).model_id == gallery


def _attempt(store: Store, model: str, champion: LineageRecord | None) -> LineageRecord | None:
    """Return the newest version, if the gate held it and it was trained against this champion."""
    newest = next((listed for listed in store.versions(model) if listed.model_id), None)
    if newest is None or newest.gate != "held":
        return None
    record = store.record(newest.model_id)
    base = record.parents[0].model_id if record.parents else None
    return record if base == (None if champion is None else champion.model_id) else None
