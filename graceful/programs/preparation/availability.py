"""What a run can still compute from predecessors that are incomplete; decided in the driver, before training.

    left            asked of it                                              otherwise
    whole           anything
    head alone      losses that read the head, where it knows every class    its cached outputs, as below
    nothing         what its cached outputs answer                           refused, in one line

A cache counts that was built with these samples and views. Budgets need answers on other samples, so they are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from graceful.chain import Completeness, Predecessor
from graceful.errors import SpecError
from graceful.spec import Adaptive, Compatibility
from graceful.training.objective import needs


def reads_outputs(version: Predecessor, compatibility: Compatibility, classes: Sequence[str]) -> bool:
    """Return whether training needs a version's outputs, cached or live."""
    asks = needs(compatibility) - {"head"}
    if version.completeness is Completeness.HEAD and set(classes) <= set(version.classes):
        asks -= {"prototypes"}
    return bool(asks)


def require_usable(
    chain: Sequence[Predecessor], compatibility: Compatibility, classes: Sequence[str], *, clean: bool, live: bool
) -> None:
    """Refuse what cannot be had from what is left of the predecessors.

    Args:
        chain: The predecessors that the losses see.
        compatibility: What is asked of them.
        classes: The classes of the new version.
        clean: Their caches hold the clean view.
        live: They run in every step.

    Raises:
        SpecError: For the first predecessor that cannot do its part, with the reason.
    """
    for version in (candidate for candidate in chain if candidate.unrunnable_reason):
        problem = _problem(version, compatibility, classes, clean=clean, live=live)
        if problem:
            raise SpecError(
                f"compatibility: {version.name}: {version.unrunnable_reason}, {problem}; or leave it out of"
                f" compatibility.against, or {version.remedy}"
            )


def _problem(
    version: Predecessor, compatibility: Compatibility, classes: Sequence[str], *, clean: bool, live: bool
) -> str | None:
    asks = needs(compatibility)
    if isinstance(compatibility.weighting, Adaptive):
        return "and a budget needs its answers on the constraint split; write weighting: equal"
    if live and reads_outputs(version, compatibility, classes):
        return "and targets.mode: live runs it in every step; write keyed, if its outputs are cached"
    if "head" in asks and version.completeness is Completeness.NOTHING and "prototypes" not in asks:
        reader = next(loss.kind for loss in compatibility.losses if "head" in loss.reads)
        return f"and {reader} reads its head; write prototypes: true, if its outputs are cached"
    if "gallery" in asks and version.unrunnable is not None:
        reader = next(loss.kind for loss in compatibility.losses if "gallery" in loss.reads)
        return f"and {reader} compares with its gallery encoder; write encoder: query, if its outputs are cached"
    if "prototypes" in asks and not clean and reads_outputs(version, compatibility, classes):
        return "and prototypes are made of its clean outputs; write prototypes: false, or take another loss"
    return None
