"""Write a difference of two versions as a page, with pictures of what flipped. Runs in the driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from graceful import tasks
from graceful.errors import GracefulError
from graceful.programs.outputs.flipped import excerpts, thumbnails
from graceful.programs.versions.diff import Difference
from graceful.spec import parse
from graceful.storage import write_text
from graceful.views.difference import PICTURED, page


def write(difference: Difference, path: Path, spec: Mapping[str, Any] | None = None) -> Difference:
    """Write the page, with pictures of what flipped where the task's data is at hand.

    Args:
        difference: What to show.
        path: The path of the HTML file.
        spec: Whose task has the samples; None: the recorded one of the new version, unless that names a file of code,
            which a registry is not trusted with.

    Returns:
        The difference, with a note where there are no pictures.
    """
    drawn, texts, why = _shown(difference, spec or difference.task)
    if why:
        difference = replace(difference, notes=(*difference.notes, f"no pictures: {why}"))
    write_text(path, page(difference, drawn, texts))
    return difference


def _shown(
    difference: Difference, document: Mapping[str, Any] | None
) -> tuple[dict[str, bytes], dict[str, str], str | None]:
    """Return pictures and texts of samples by id, and why there are none of either."""
    ids = [flip.id for flip in (*difference.broken[:PICTURED], *difference.fixed[:PICTURED])]
    if not ids:
        return {}, {}, None
    if document is None:
        return {}, {}, "the task is code of your own; give --spec with the spec of the new version"
    try:
        task = parse({**document, "gate": {}}).task  # the gate of an older spec may be refused now
        samples = tasks.build(task).samples("test")
        drawn, texts = thumbnails(ids, samples), excerpts(ids, samples)
    except GracefulError as e:
        return {}, {}, e.message
    none = "the samples that flipped are neither images nor texts, or not in the test data of that spec"
    return drawn, texts, None if drawn or texts else none
