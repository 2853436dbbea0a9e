"""The measured evidence about one version, as plain values that travel as JSON. Floats only; runs in every process."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self, get_args

from graceful.catalogue import Metric
from graceful.errors import DataError

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One metric with its evidence.

    Attributes:
        value: Rates are fractions in [0, 1]; None where the metric is undefined, with the reason.
        lower: Lower end of the 95 % interval, None where no interval exists.
        upper: Upper end of it.
        count: Numerator where the metric is a count over n.
        n: Number of ids (queries, pairs) behind the value.
        reason: Why the value is None, or a caveat about it.
    """

    value: float | None
    lower: float | None = None
    upper: float | None = None
    count: int | None = None
    n: int = 0
    reason: str | None = None


Relation = Literal["ancestor", "gallery", "query"]
"""Relation of another version to the one that is measured."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The new version against one ancestor, on ids both can answer.

    Attributes:
        against: Name of the ancestor, e.g. `v1`.
        model_id: Its identity in the registry.
        distance: 1 for the latest predecessor, 2 for the one before it, ...
        measurements: Metric name -> measurement.
        relation: `ancestor`; `gallery`: the new version is a query model of its index; `query`: a query model of the
            new version's index.
    """

    against: str
    model_id: str
    distance: int
    measurements: Mapping[str, Measurement]
    relation: Relation = "ancestor"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything the gate may look at. `judge(report, constraints)` needs nothing else.

    Attributes:
        model: Model family, e.g. `glyphs`.
        version: Name of the new version, e.g. `v2`.
        data: Split name -> SHA-256 of the samples that were evaluated.
        measurements: The new version on its own: `error_rate`, `self_test_recall_at_1`, ...
        comparisons: Nearest ancestor first; empty for the first link.
        notes: Caveats for people, one sentence each.
        metrics: What is known of the metrics that other packages measured, by name, so that the report can be judged
            and shown without those packages.
        certificate: What certifies a version that was solved and not trained by steps; None: it was.
    """

    model: str
    version: str
    data: Mapping[str, str]
    measurements: Mapping[str, Measurement]
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    schema: int = field(default=SCHEMA)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    certificate: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        """Render as indented JSON with sorted keys; equal reports give equal bytes."""
        document = asdict(replace(self, metrics={}))
        del document["metrics"]  # reports without metrics of other packages are as they were before there were any
        for item in document["comparisons"]:
            if item["relation"] == "ancestor":  # reports without query models are as they were before there were any
                del item["relation"]
        if self.certificate is None:
            del document["certificate"]
        if self.metrics:
            document["metrics"] = {name: metric.row() for name, metric in self.metrics.items()}
        return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"

    @property
    def ancestors(self) -> tuple[Comparison, ...]:
        """Return the comparisons with ancestors, those with query and gallery models left out."""
        return tuple(item for item in self.comparisons if item.relation == "ancestor")

    @property
    def pairs(self) -> tuple[Comparison, ...]:
        """Return the comparisons with gallery models, or with query models."""
        return tuple(item for item in self.comparisons if item.relation != "ancestor")

    @classmethod
    def from_json(cls, text: str, *, where: str = "report") -> Self:
        """Read what `to_json` wrote.

        Raises:
            DataError: Not JSON, another schema, or a field is missing, unknown or not finite.
        """
        try:
            raw = json.loads(text, parse_constant=_refuse_constant)
            if raw.get("schema") != SCHEMA:
                raise DataError(f"{where}: schema is {raw.get('schema')!r}, this graceful reads {SCHEMA}; re-evaluate")
            comparisons = tuple(
                Comparison(**{**item, "measurements": _measurements(item["measurements"])})
                for item in raw["comparisons"]
            )
            fields: dict[str, Any] = {
                **raw,
                "measurements": _measurements(raw["measurements"]),
                "comparisons": comparisons,
                "notes": tuple(raw["notes"]),
                "metrics": {name: Metric.of_row(row) for name, row in raw.get("metrics", {}).items()},
            }
            report = cls(**fields)
            _require_names(report)
            return report
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise DataError(f"{where}: not a report of graceful ({e}); write it with `graceful evaluate`") from e


def _measurements(raw: Mapping[str, Mapping[str, Any]]) -> dict[str, Measurement]:
    return {name: _measurement(name, item) for name, item in raw.items()}


def _measurement(name: str, raw: Mapping[str, Any]) -> Measurement:
    """Read a measurement, and refuse texts, truth values and infinities in place of numbers, which JSON permits."""
    measurement = Measurement(**raw)
    for key in ("value", "lower", "upper"):
        number = getattr(measurement, key)
        if number is not None and (type(number) not in (int, float) or not math.isfinite(number)):
            raise ValueError(f"{name}.{key} must be a finite number, got {number!r:.40}")
    for key in ("count", "n"):
        number = getattr(measurement, key)
        if type(number) is not int and (key, number) != ("count", None):
            raise ValueError(f"{name}.{key} must be a whole number, got {number!r:.40}")
    return measurement


def _require_names(report: Report) -> None:
    named = {"model": report.model, "version": report.version}
    named |= {f"comparisons.{index}.against": item.against for index, item in enumerate(report.comparisons)}
    named |= {f"comparisons.{index}.model_id": item.model_id for index, item in enumerate(report.comparisons)}
    named |= {f"notes.{index}": note for index, note in enumerate(report.notes)}
    for name, metric in report.metrics.items():
        if metric.name != name:
            raise ValueError(f"metrics.{name}.name must be {name!r}, got {metric.name!r:.40}")
    if not isinstance(report.data, dict):
        raise ValueError(f"data must be a mapping of splits to digests, got {report.data!r:.40}")
    named |= {f"data.{split}": digest for split, digest in report.data.items()}
    for key, name in named.items():
        if not isinstance(name, str):
            raise ValueError(f"{key} must be a name, got {name!r:.40}")
    for index, item in enumerate(report.comparisons):
        if item.relation not in get_args(Relation):
            raise ValueError(f"comparisons.{index}.relation must be one of {get_args(Relation)}, got {item.relation!r}")
        if type(item.distance) is not int:
            raise ValueError(f"comparisons.{index}.distance must be a whole number, got {item.distance!r:.40}")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number a report may hold" if math.isnan(float(name)) else f"{name} is infinite")
