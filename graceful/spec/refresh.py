"""One refresh as a value: task, training, compatibility, gate, registry. Runs in every process."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from graceful import addresses, catalogue, paths, redact
from graceful.catalogue import About
from graceful.constraints import (
    ADAPTER_METRICS,
    ALL,
    COMPARISON_METRICS,
    DIRECTIONS,
    LATEST,
    OWN_METRICS,
    SELF,
    UNMEASURED,
    Constraint,
    Direction,
    implied_direction,
)
from graceful.errors import SpecError
from graceful.sections import NAME, VERSION, Count, Section, unreserved
from graceful.spec.addresses import checked_webhook
from graceful.spec.architectures import Architectures
from graceful.spec.compatibility import ROOM, Compatibility
from graceful.spec.deepspeed import deepspeed_config
from graceful.spec.engines import DeepSpeedEngine
from graceful.spec.gallery import Gallery, require_trainable, with_losses
from graceful.spec.methods import require_nothing_trained, require_quadratic
from graceful.spec.space_map import SpaceMap
from graceful.spec.tasks import Task
from graceful.spec.training import LIMITS, Train
from graceful.spec.tune import Tune


class GateConstraint(Section):
    """A bound the report must show; see `graceful.constraints.Constraint`."""

    metric: str
    """Name of a measurement, e.g. negative_flip_rate, error_rate, cross_test_gain_recall_at_1."""
    direction: Direction | None = None
    """Side of the bound on which the unfavourable end of the interval must lie; None: the good side of the metric,
    which only metrics that describe an old version lack. One that contradicts the metric is refused."""
    bound: float
    """A fraction for rates: 0.02 for two percent."""
    against: str | None = None
    """self, latest, all, or one ancestor's name; None: self for a version's own metrics, else all."""

    @model_validator(mode="before")
    @classmethod
    def _imply_direction(cls, values: Any) -> Any:
        """Fill in the direction that the metric implies, so that a resolved spec says it."""
        if not isinstance(values, Mapping) or values.get("direction") is not None:
            return values
        metric = values.get("metric")
        implied = implied_direction(metric) if isinstance(metric, str) else None
        return values if implied is None else {**values, "direction": implied}

    @model_validator(mode="after")
    def _known(self) -> GateConstraint:
        if self.metric in UNMEASURED:
            raise ValueError(f"metric must not be {self.metric} yet, usage is not measured; write chain_mean_nfr")
        if catalogue.find(self.metric) is None:
            raise ValueError(f"metric {self.metric!r} is not measured; {_instead(self.metric)}")
        own = self._is_own
        if self.against is not None and own != (self.against == SELF):
            raise ValueError(f"against must be {'self' if own else 'an ancestor'} for {self.metric}; leave it out")
        return self

    @model_validator(mode="after")
    def _directed(self) -> GateConstraint:
        better = self._row.better
        allowed = DIRECTIONS[better]
        if self.direction is None:
            remedy = "write at_most, at_least or above"
            raise ValueError(f"direction must be written for {self.metric}, of which either may be wanted; {remedy}")
        if self.direction not in allowed:
            raise ValueError(
                f"direction must be {' or '.join(allowed)} for {self.metric}, of which {better} is better, got"
                f" {self.direction}: such a bound would pass what it should hold; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _in_range(self) -> GateConstraint:
        metric = self._row
        if not metric.lowest <= self.bound <= metric.highest:
            percent = f"; write {self.bound / 100:g} for {self.bound:g} percent" if 1.0 < self.bound <= 100.0 else ""
            finite = isfinite(metric.highest)
            expected = f"in [{metric.lowest:g}, {metric.highest:g}]" if finite else f"at least {metric.lowest:g}"
            raise ValueError(f"bound must be {expected}, got {self.bound:g}{percent}")
        return self

    @property
    def _row(self) -> catalogue.Metric:
        metric = catalogue.find(self.metric)
        assert metric is not None, "validated"
        return metric

    @property
    def _is_own(self) -> bool:
        """Return whether the metric is about the version itself, or all ancestors together: not about one of them."""
        return self._row.about in (About.VERSION, About.CHAIN)

    def constraint(self) -> Constraint:
        """Return the floats-only value that the gate judges."""
        against = self.against or (SELF if self._is_own else ALL)
        assert self.direction is not None, "validated"
        return Constraint(metric=self.metric, direction=self.direction, bound=self.bound, against=against)


def _instead(metric: str) -> str:
    """Return why no metric of that name can be used, or which one may have been meant."""
    if metric in catalogue.unavailable():
        return catalogue.unavailable()[metric]
    metrics = {*OWN_METRICS, *COMPARISON_METRICS, *catalogue.others()} - {*UNMEASURED}
    matches = difflib.get_close_matches(metric, sorted(metrics), n=1)
    return f"did you mean {matches[0]}?" if matches else f"write one of {', '.join(COMPARISON_METRICS)}"


class Gate(Section):
    """What decides between passed and held."""

    constraints: tuple[GateConstraint, ...] = (GateConstraint(metric="negative_flip_rate", bound=0.05),)
    """All of them must hold, or the version is held."""
    family: Literal["none", "bonferroni"] = "none"
    """bonferroni: widen each of the K intervals so that all hold jointly at 95 %."""


class Evaluate(Section):
    """What is measured, and on how much."""

    retrieval: bool = True
    """Also measure new-query/old-gallery retrieval."""
    batch_size: Count = 1024
    """Samples per forward pass at most; large ones are run fewer at a time."""
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = 1000
    """Draws behind the intervals of ratios and of retrieval."""


class Registry(Section):
    """Where versions and their lineage are recorded."""

    uri: Annotated[str, AfterValidator(addresses.registry)] | None = None
    """MLflow tracking URI; None: $MLFLOW_TRACKING_URI, else sqlite and files under `home`.
    A spec with a password in it is not sent to a cluster."""
    webhook: (
        Annotated[str, AfterValidator(checked_webhook), Field(json_schema_extra={"pattern": r"^https?://\S+$"})] | None
    ) = None
    """Address that receives each verdict and move by a POST; None: $GRACEFUL_WEBHOOK, else none.
    A spec with a path in this address is not sent to a cluster, because the path is a secret."""
    copy_bases: Annotated[bool, Field(exclude_if=lambda copy: copy)] = True
    """Copy the checkpoint that a version with adapters names, once for each model family, so that the version still
    opens when the folder or the hub is gone."""


class Trust(Section):
    """Whose code may run besides that of `task`."""

    code_digests: tuple[str, ...] = ()
    """SHA-256 of recorded task code of ancestors that may run, as `--trust-code` adds them. Whoever may write to a
    registry or a bucket may name any code there, so an ancestor with other code is not run, and what would be measured
    against it is held."""

    @field_validator("code_digests")
    @classmethod
    def _digests(cls, digests: tuple[str, ...]) -> tuple[str, ...]:
        for digest in digests:
            if not re.fullmatch("[0-9a-f]{64}", digest):
                raise ValueError(f"must be SHA-256 of code, 64 digits of 0-9 and a-f, got {digest!r:.80}")
        return digests


class RefreshSpec(Section):
    """Train, evaluate, gate, register, promote: one new version of one model family."""

    kind: Literal["refresh"] = "refresh"
    model: Annotated[str, Field(pattern=NAME), AfterValidator(unreserved)]
    """Model family; the registered model's name."""
    name: Annotated[str, Field(pattern=NAME)]
    """Name of this version, e.g. v2. `model-name` is the run id: the same id resumes, a changed spec is refused."""
    description: str = ""
    """For people; shown in the registry."""
    task: Task
    """Which model learns what from which data."""
    train: Train = Train()
    compatibility: Compatibility = Compatibility()
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate()
    registry: Registry = Registry()
    trust: Annotated[Trust, Field(exclude_if=lambda trust: trust == Trust())] = Trust()
    parents: tuple[Annotated[str, Field(pattern=VERSION), AfterValidator(unreserved)], ...] = ()
    """Further direct predecessors, besides the champion of `model`: MODEL@ALIAS, MODEL:NUMBER or MODEL:NAME. For a new
    branch, e.g. glyphs-edge from glyphs@champion, and for a merge of branches."""
    gallery: Annotated[Gallery | None, Field(exclude_if=lambda gallery: gallery is None)] = None
    """Makes this version a query model of a larger version's index; null: it searches its own."""
    adapter: Annotated[SpaceMap | None, Field(exclude_if=lambda adapter: adapter is None)] = None
    """Makes this version an adapter between two others, which `graceful adapt` fits; null: it is a model."""
    tune: Tune | None = None
    """What `graceful tune` searches; null: its defaults. Changes nothing for a refresh."""
    architectures: Annotated[Architectures | None, Field(exclude_if=lambda section: section is None)] = None
    """What `graceful search-architecture` searches for a query model. Changes nothing for a refresh."""
    if_new_data: bool = False
    """Skip the refresh unless training data or recipe have changed since the champion; scheduled firings do so."""
    home: Annotated[str, AfterValidator(paths.checked)] | None = None
    """Folder of runs, caches and the default registry; None: $GRACEFUL_HOME, else .graceful here."""

    @model_validator(mode="before")
    @classmethod
    def _losses_of_query_models(cls, values: Any) -> Any:
        return with_losses(values)

    @model_validator(mode="after")
    def _searches_its_gallery(self) -> RefreshSpec:
        if self.gallery is not None:
            require_trainable(self.gallery, self.compatibility, model=self.model)
        return self

    @model_validator(mode="after")
    def _adapters_alone(self) -> RefreshSpec:
        adapted = [item.metric for item in self.gate.constraints if item.metric in ADAPTER_METRICS]
        if adapted and self.adapter is None:
            raise ValueError(
                f"gate.constraints: {adapted[0]} is measured of adapters alone, by `graceful adapt`; bound"
                " cross_test_gain_recall_at_1 instead"
            )
        return self

    @model_validator(mode="after")
    def _batch(self) -> RefreshSpec:
        parts = max(self.train.num_workers, 1) * self.train.accumulation
        if self.train.batch_size % parts:
            raise ValueError(
                f"train.batch_size must divide by workers x accumulation = {parts}, got {self.train.batch_size};"
                f" write {max(self.train.batch_size // parts, 1) * parts}"
            )
        if self.name in (SELF, LATEST, ALL):
            raise ValueError(f"name must not be one of {SELF}, {LATEST}, {ALL}, got {self.name!r}; write v1")
        return self

    @model_validator(mode="after")
    def _engine_config(self) -> RefreshSpec:
        if not isinstance(self.train.engine, DeepSpeedEngine):
            return self
        if self.train.engine.sharded_init and (self.task.kind != "python" or self.train.start != "random"):
            raise ValueError(
                f"train.engine.sharded_init needs a Python task and train.start: random, got task.kind {self.task.kind}"
                f" and start: {self.train.start}; leave it out"
            )
        if self.train.engine.config:
            try:
                deepspeed_config(self.train, world_size=max(self.train.num_workers, 1))
            except SpecError as e:
                raise ValueError(e.message) from e
        return self

    @model_validator(mode="after")
    def _searches_one_teacher(self) -> RefreshSpec:
        if self.compatibility.blend is not None and self.tune is not None and self.tune.space.compare is not None:
            raise ValueError("tune.space.compare must be null with compatibility.blend, whose share is searched")
        return self

    @model_validator(mode="after")
    def _quadratic(self) -> RefreshSpec:
        method = self.train.method
        if method.kind == "lqf":
            require_quadratic(method, self.compatibility, self.train)
        if method.kind == "combination":
            require_nothing_trained(self.compatibility)
        return self

    @model_validator(mode="after")
    def _interpolates_from_latest(self) -> RefreshSpec:
        """Refuse interpolation of weights that did not start together, because no useful model lies between them."""
        if self.train.start == "latest":
            return self
        remedy = f"with train.start: {self.train.start}; leave it out, or write train.start: latest"
        if self.compatibility.interpolation:
            raise ValueError(
                f"compatibility.interpolation must be 0, got {self.compatibility.interpolation:g}, {remedy}"
            )
        if self.tune is not None and self.tune.space.interpolation is not None:
            raise ValueError(f"tune.space.interpolation must be null {remedy}")
        return self

    @property
    def run_id(self) -> str:
        """Return the stable identity of the run: the same id resumes."""
        return f"{self.model}-{self.name}"

    def dump(self) -> dict[str, Any]:
        """Return the resolved spec as JSON values; `parse` and `load` read them back unchanged."""
        return self.model_dump(mode="json")

    def recorded(self) -> dict[str, Any]:
        """Return `dump` with *** in place of its secrets, to be shown or recorded; the digest is the same."""
        document = self.dump()
        public = {key: redact.hidden(document[key], key) for key in ("registry", "description")}
        if self.registry.uri is not None:
            public["registry"]["uri"] = redact.address(self.registry.uri)
        return {**document, **public}

    def digest(self) -> str:
        """Return the SHA-256 of what determines the result.

        Left out: where it is kept, how it is described, whether it may be skipped, how its weights were or would be
        searched, and how long or how often it may be tried, so that a run that was out of time resumes with a larger
        `train.timeout`.
        """
        left_out = dict.fromkeys(
            ("home", "registry", "description", "if_new_data", "trust", "tune", "architectures"), True
        )
        if not self.parents:  # specs that are older than this key keep their digest
            left_out["parents"] = True
        document = self.model_dump(mode="json", exclude={**left_out, "train": LIMITS, "compatibility": ROOM})
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
