"""A family to look at: five versions and an edge branch, with flips, thumbnails, predictions and a report page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from graceful.lineage import LineageRecord, Store
from graceful.metrics.predictions import Predictions
from graceful.programs.outputs import recorded_predictions
from graceful.programs.outputs.flipped import negative_flips
from graceful.views.report import render_report
from tests.support import mlflow_versions as versions

SAMPLES = 1000
CLASSES = ("circle", "square", "star")


def said(wrong: Sequence[int]) -> Predictions:
    """Answers that are right except on some samples."""
    labels = np.asarray(CLASSES)[np.arange(SAMPLES) % 3]
    answer = labels.copy()
    answer[list(wrong)] = np.asarray(CLASSES)[(np.asarray(wrong, dtype=int) + 1) % 3]
    return Predictions(
        ids=np.asarray([f"test-{index:04d}" for index in range(SAMPLES)]),
        labels=labels,
        predicted=answer,
        classes=CLASSES,
        confidence=np.full(SAMPLES, 0.9),
    )


def thumbnail(index: int) -> bytes:
    """Return a PNG that differs from sample to sample."""
    pixels = np.zeros((28, 28), np.uint8)
    pixels[4 : 8 + index % 17, 4 : 8 + index % 19] = 200
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((56, 56)).save(buffer, format="PNG")
    return buffer.getvalue()


def add(
    store: Store,
    folder: Path,
    name: str,
    chain: Sequence[LineageRecord] = (),
    *,
    wrong: Sequence[int],
    flips: float = 0.005,
    model: str = "glyphs",
) -> LineageRecord:
    """Register a version with everything a refresh records, and promote it if it passed."""
    item = versions.registration(store, folder, name, chain, flips=flips, model=model)
    notes = folder / f"{model}-{name}-notes"
    notes.mkdir(parents=True)
    new = said(wrong)
    recorded_predictions.save(notes / recorded_predictions.FILE, new)
    flipped = negative_flips(new, said([]), against=chain[0].name) if chain else ()
    shown = {flip.id: thumbnail(index) for index, flip in enumerate(flipped[:12])}
    (notes / "report.html").write_text(render_report(item.report, item.verdict, flips=flipped[:12]), encoding="utf-8")
    item = versions.changed(
        item,
        attachments=(notes / "report.html", notes / recorded_predictions.FILE),
        flips=tuple(asdict(flip) for flip in flipped),
        thumbnails=shown,
    )
    record = store.register(item)
    if record.verdict == "passed":
        own = [ancestor for ancestor in chain if ancestor.model == model]
        expected = own[0].version if own else None
        store.promote(model, record.version, expected=expected, reason="test", actor="pytest")
    return record


def tell(store: Store, folder: Path) -> dict[str, LineageRecord]:
    """v1, v2, v3 held, v4, and an edge branch that descends from v2."""
    v1 = add(store, folder, "v1", wrong=range(0, 60))
    v2 = add(store, folder, "v2", [v1], wrong=range(5, 55))
    v3 = add(store, folder, "v3", [v2, v1], wrong=range(30, 120), flips=0.05)
    v4 = add(store, folder, "v4", [v2, v1], wrong=range(8, 48), flips=0.008)
    edge = add(store, folder, "edge-v1", [v2, v1], wrong=range(5, 70), flips=0.011, model="glyphs-edge")
    return {"v1": v1, "v2": v2, "v3": v3, "v4": v4, "edge": edge}
