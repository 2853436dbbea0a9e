"""The gallery model of a query model, and how the query model learns to search its index. Runs in every process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from graceful.losses import registry
from graceful.sections import VERSION, Section, unreserved
from graceful.spec.compatibility import Compatibility

Version = Annotated[str, Field(pattern=VERSION), AfterValidator(unreserved)]


class Gallery(Section):
    """Makes this version a query model: it is trained to search the index that a larger, frozen version embeds."""

    version: Version
    """The gallery model: MODEL@ALIAS, MODEL:NUMBER or MODEL:NAME of another model family."""
    labels: bool = True
    """Also learn the task's classes, with a head of its own; false: train with the losses alone, which then must need
    no labels."""
    baseline: Version | None = None
    """A registered version of the same cost that was trained alone: the gate can ask for more than that; None: none."""
    may_differ: tuple[Literal["preprocessing", "resolution"], ...] = ()
    """Parts of the embedding contract in which query and gallery model may differ, e.g. resolution for a query model
    that sees smaller images."""


def with_losses(values: Any) -> Any:
    """Return an unvalidated spec with the losses of a query model where it names a gallery and no losses."""
    if not isinstance(values, Mapping) or values.get("gallery") is None:
        return values
    section = values.get("compatibility") or {}
    if not isinstance(section, Mapping) or "losses" in section:
        return values
    gallery = values["gallery"]
    labels = gallery.get("labels", True) if isinstance(gallery, Mapping) else getattr(gallery, "labels", True)
    losses = [
        {"kind": kind, "weight": loss.query_weight}
        for kind, loss in registry.kinds().items()
        if loss.query_weight is not None and (labels is not False or not loss.reads_labels)
    ]
    return {**values, "compatibility": {**section, "losses": losses}}


def require_trainable(gallery: Gallery, compatibility: Compatibility, *, model: str) -> None:
    """Refuse a query model that could not search its gallery.

    Raises:
        ValueError: The reason, and what to write.
    """
    for key, version in (("version", gallery.version), ("baseline", gallery.baseline)):
        if version is not None and version.partition(":")[0].partition("@")[0] == model:
            raise ValueError(
                f"gallery.{key} must be of another model family than {model}: query models are a family of their own;"
                f" write model: {model}-edge"
            )
    if compatibility.blend is not None:
        raise ValueError("compatibility.blend distils outputs of ancestors, not of a gallery model; leave it out")
    names = [loss.kind for loss in compatibility.losses]
    if not any(loss.aligns_embeddings for loss in compatibility.losses):
        raise ValueError(
            f"compatibility.losses: {', '.join(names) or 'no loss'} leaves the embeddings of a query model anywhere:"
            f" distillation of outputs alone puts it at chance on its gallery; add {_aligning()}, or leave losses out"
            " for the defaults"
        )
    labelled = [loss.kind for loss in compatibility.losses if loss.reads_labels] if not gallery.labels else []
    if labelled:
        raise ValueError(
            f"compatibility.losses: {labelled[0]} reads labels, and gallery.labels is false; write"
            f" {_aligning(without_labels=True)}"
        )


def _aligning(*, without_labels: bool = False) -> str:
    """Return the kinds of losses that make a query model search its gallery, for a message."""
    kinds = (
        kind
        for kind, loss in registry.kinds().items()
        if loss.aligns_embeddings and not (without_labels and loss.reads_labels)
    )
    return " or ".join(kinds)
