"""Two registered versions side by side, from what was recorded: numbers, flips, spec. No network is run. In the driver.

The first version is the old one, the second the new one. Their recorded predictions are joined by sample id, so that
any two versions compare, also those that never met in a refresh.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graceful import documents
from graceful.errors import DataError, RegistryError
from graceful.lineage import LineageRecord, Store
from graceful.metrics import flips
from graceful.metrics.predictions import Predictions, join
from graceful.programs.outputs import recorded_predictions
from graceful.programs.runs.ancestry import find
from graceful.report import Measurement

FLIPS = ("negative_flip_rate", "positive_flip_rate", "error_rate_change", "relative_nfr", "negative_flip_impact")


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A sample that one version answers right and the other wrong.

    Attributes:
        id: The id of the sample.
        label: True class.
        old: Prediction of the old version.
        new: Prediction of the new version.
        confidence: Probability that the version that is wrong gives to its answer.
        group: What the sample belongs to.
    """

    id: str
    label: str
    old: str
    new: str
    confidence: float
    group: str


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What changes from `old` to `new`.

    Attributes:
        old: The first version.
        new: The second one.
        metrics: Name -> its value in both; None where it was not measured.
        flips: Name -> measurement of new against old; empty where it is not known.
        spec: Key -> its value in both, for keys that differ.
        broken: Negative flips, the most confident mistakes first.
        fixed: Positive flips.
        notes: What could not be compared, and why.
        task: Spec of the new version, where its task is one that graceful ships; None: it names code.
    """

    old: LineageRecord
    new: LineageRecord
    metrics: Mapping[str, tuple[float | None, float | None]]
    flips: Mapping[str, Measurement]
    spec: Mapping[str, tuple[Any, Any]]
    broken: tuple[Flip, ...]
    fixed: tuple[Flip, ...]
    notes: tuple[str, ...]
    task: Mapping[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "old": _identity(self.old),
            "new": _identity(self.new),
            "metrics": [
                {"name": name, "old": old, "new": new, "change": None if None in (old, new) else new - old}  # type: ignore[operator]
                for name, (old, new) in self.metrics.items()
            ],
            "flips": {name: asdict(measurement) for name, measurement in self.flips.items()},
            "spec": [{"key": key, "old": old, "new": new} for key, (old, new) in self.spec.items()],
            "broken": [asdict(flip) for flip in self.broken],
            "fixed": [asdict(flip) for flip in self.fixed],
            "notes": list(self.notes),
        }


def difference(store: Store, first: str, second: str) -> Difference:
    """Compare two versions, each MODEL, MODEL:NUMBER, MODEL:NAME or MODEL@ALIAS; a bare model is its champion.

    Raises:
        SpecError: There is no such version.
        RegistryError, IntegrityError: The registry is unreachable, or what it holds was altered.
    """
    old, new = (store.record(find(store, text).model_id) for text in (first, second))
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        predictions = [_predictions(store, record, Path(scratch) / record.model_id, notes) for record in (old, new)]
        specs = [_spec(store, record, Path(scratch) / record.model_id, notes) for record in (old, new)]
    measured, broken, fixed = _flips(old, new, predictions, notes)
    names = sorted({*old.metrics, *new.metrics})
    return Difference(
        old=old,
        new=new,
        metrics={name: (old.metrics.get(name), new.metrics.get(name)) for name in names},
        flips=measured,
        spec=_changed(*specs),
        broken=broken,
        fixed=fixed,
        notes=tuple(notes),
        task=specs[1] if specs[1] and specs[1]["task"]["kind"] != "python" else None,
    )


def _identity(record: LineageRecord) -> dict[str, Any]:
    keys = ("model", "name", "version", "model_id", "run_id", "verdict", "created")
    return {key: getattr(record, key) for key in keys}


def _predictions(store: Store, record: LineageRecord, folder: Path, notes: list[str]) -> Predictions | None:
    if recorded_predictions.FILE not in record.evidence:
        notes.append(f"{record.name}: its predictions were not recorded; it was registered by an older graceful")
        return None
    folder.mkdir(exist_ok=True)
    return recorded_predictions.load(store.evidence(record, recorded_predictions.FILE, folder))


def _spec(store: Store, record: LineageRecord, folder: Path, notes: list[str]) -> dict[str, Any] | None:
    folder.mkdir(exist_ok=True)
    try:
        path = store.evidence(record, "spec.yaml", folder)
    except RegistryError as e:
        notes.append(f"spec: {e.message}")
        return None
    document: dict[str, Any] = documents.read(path)
    return document


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items:
        yield prefix, value
    for key, inner in items:
        yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)


def _changed(old: dict[str, Any] | None, new: dict[str, Any] | None) -> dict[str, tuple[Any, Any]]:
    """Return the keys that differ; the names of the versions always do and are left out."""
    if old is None or new is None:
        return {}
    old, new = dict(_flat("", old)), dict(_flat("", new))
    keys = [*old, *(key for key in new if key not in old)]
    pairs = {key: (old.get(key), new.get(key)) for key in keys if key not in ("name", "description")}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _flips(
    old: LineageRecord, new: LineageRecord, predictions: list[Predictions | None], notes: list[str]
) -> tuple[dict[str, Measurement], tuple[Flip, ...], tuple[Flip, ...]]:
    """Return numbers measured from the predictions; else those that the new version's report has of the old one."""
    old_predictions, new_predictions = predictions
    if old_predictions is not None and new_predictions is not None:
        if old.data.get("test") != new.data.get("test"):
            notes.append("the two were measured on different test data; samples that both know are compared")
            old_predictions, new_predictions = _shared(old_predictions, new_predictions)
        try:
            measured = flips.compare(new_predictions, old_predictions)
            broken, fixed = _listed(old_predictions, new_predictions)
        except DataError as e:
            notes.append(f"flips: {e.message}")
        else:
            return {name: measured[name] for name in FLIPS if name in measured}, broken, fixed
    edge = next((edge for edge in new.edges if edge.model_id == old.model_id), None)
    if edge is None:
        return {}, (), ()
    values = {name: Measurement(value=edge.metrics[name]) for name in FLIPS if name in edge.metrics}
    return {**values, FLIPS[0]: Measurement(value=edge.value, lower=edge.lower, upper=edge.upper)}, (), ()


def _shared(old: Predictions, new: Predictions) -> tuple[Predictions, Predictions]:
    shared_ids = np.intersect1d(old.ids, new.ids)
    first, second = (
        predictions.take(np.flatnonzero(np.isin(predictions.ids, shared_ids))) for predictions in (old, new)
    )
    return first, second


def _listed(old: Predictions, new: Predictions) -> tuple[tuple[Flip, ...], tuple[Flip, ...]]:
    """Return the negative and positive flips, the most confident mistakes first."""
    joined = join(new, old)
    old_rows, new_rows = ({str(name): row for row, name in enumerate(side.ids.tolist())} for side in (old, new))

    def rows(chosen: Any, wrong: Predictions, rows_of: Mapping[str, int]) -> tuple[Flip, ...]:
        flips = []
        for name in map(str, joined.ids[chosen].tolist()):
            row = new_rows[name]
            confidence = 0.0 if wrong.confidence is None else float(wrong.confidence[rows_of[name]])
            predicted = (str(old.predicted[old_rows[name]]), str(new.predicted[row]))
            group = name if new.groups is None else str(new.groups[row])
            label = str(new.labels[row])
            flips.append(
                Flip(id=name, label=label, old=predicted[0], new=predicted[1], confidence=confidence, group=group)
            )
        return tuple(sorted(flips, key=lambda flip: (-flip.confidence, flip.id)))

    return (
        rows(joined.ok_old & ~joined.ok_new, new, new_rows),
        rows(~joined.ok_old & joined.ok_new, old, old_rows),
    )
