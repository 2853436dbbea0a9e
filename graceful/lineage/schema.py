"""What is recorded about a version: nodes, edges and `lineage.json`, the truth that all else derives from. No mlflow.

A node is an MLflow LoggedModel id (`m-` and 32 hex digits), never a version number: numbers start again at 1 when a
registered model is made again. Descriptions, version tags and pictures are views; every edge can be read back from
`lineage.json` alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError, model_validator

from graceful import section_errors
from graceful.errors import RegistryError
from graceful.gate import Verdict
from graceful.report import Relation, Report
from graceful.spec import NAME, parse

SCHEMA: Literal[1] = 1
NFR = "negative_flip_rate"

CHAMPION = "champion"
PREVIOUS = "previous"

TAG_REFRESH = "graceful_refresh_id"
TAG_KIND = "graceful_kind"
TAG_SPEC = "graceful_spec_digest"
TAG_GATE = "graceful_gate"
TAG_PARENTS = "graceful_parents"
TAG_GALLERIES = "graceful_galleries"
TAG_QUERIES = "graceful_queries"
TAG_NFR_MAX = "graceful_nfr_max_pct"
TAG_DIGEST = "graceful_digest"
TAG_RECORD = "graceful_lineage_digest"
TAG_FAMILY = "graceful_family"
TAG_BASE = "graceful_base"
TAG_SCHEMA = "graceful_schema"
TAG_DUPLICATE = "graceful_duplicate_of"
TAG_KEY = "graceful_key"
TAG_OWNER = "graceful_owner"
KIND_PAGE = "lineage-overview"
KIND_BASE = "base"
_PARENT = "graceful_parent_"

VERSION_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
"""A number of the registry as it stands in a tag, which anybody may edit."""

NODE_ID = r"^m-[0-9a-f]{32}$"
_FILE = r"^(?!\.\.?(/|$))[\w.-]+(/(?!\.\.?(/|$))[\w.-]+)*$"
Name = Annotated[str, StringConstraints(pattern=NAME)]
NodeId = Annotated[str, StringConstraints(pattern=NODE_ID)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, StringConstraints(pattern=_FILE, max_length=250)]
Judged = Literal["passed", "held", "unjudged"]
_STRICT = ConfigDict(extra="forbid", strict=False, regex_engine="python-re", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class Node:
    """One version of any model family.

    Attributes:
        model_id: Its identity.
        name: What people call it, e.g. `v1`.
    """

    __pydantic_config__ = _STRICT

    model_id: NodeId
    name: Name


@dataclass(frozen=True, kw_only=True)
class Edge:
    """The new version measured against one ancestor.

    Attributes:
        model_id: The ancestor's identity.
        name: The ancestor's name.
        distance: 1 for the latest predecessor, 2 for the one before it, ...
        value: Negative flip rate, a fraction; None where it was not measured.
        lower: Lower end of its 95 % interval.
        upper: Upper end of it.
        bound: The tightest bound the gate applied to it; None: unconstrained.
        verdict: Whether every constraint against this ancestor was met; `unjudged` where there was none.
        metrics: All measurements against it that have a value; rates are fractions.
        relation: `ancestor`; `gallery`: the new version searches its index; `query`: it searches the new version's.
    """

    __pydantic_config__ = _STRICT

    model_id: NodeId
    name: Name
    distance: int
    value: float | None
    lower: float | None
    upper: float | None
    bound: float | None
    verdict: Judged
    metrics: dict[str, float] = field(default_factory=dict)
    relation: Relation = "ancestor"


@dataclass(frozen=True, kw_only=True)
class LineageRecord:
    """Everything recorded about one version; written once, as the last file of a registration.

    Attributes:
        model: Model family.
        name: Name of the version.
        model_id: Its identity.
        refresh_id: `model-name`; the same refresh registers once.
        run_id: MLflow run that holds its artifacts.
        parents: Direct predecessors, the one it was refreshed from first. Empty for a first link.
        constraints: What the gate was asked, as written in the spec.
        edges: One for each ancestor it was measured against, nearest first.
        verdict: passed or held.
        reasons: One sentence for each finding of the gate.
        metrics: The version's own measurements that have a value; rates are fractions.
        spec_digest: SHA-256 of the spec.
        data: Split -> SHA-256 of the samples that were evaluated.
        training: `data`: SHA-256 of the training samples; `transform`: of what makes network inputs of them. Empty in
            records of earlier releases.
        digest: Digest of the version bundle, as `graceful.models.bundle` computes it.
        files: Path -> SHA-256 of each registered file.
        manifest: SHA-256 over `files`; also a tag of the version.
        evidence: File beside it -> SHA-256: report, verdict, spec, predictions, flips. Empty in older records.
        code_version: Release of graceful that registered it.
        created: UTC time, ISO 8601.
        certificate: What certifies a version that was solved and not trained by steps; None: it was.
        version: Number in the registry; 0 where none is listed. Not part of `lineage.json`, since it is not an
        identity.
    """

    __pydantic_config__ = _STRICT

    model: Name
    name: Name
    model_id: NodeId
    refresh_id: str
    run_id: str
    parents: tuple[Node, ...]
    constraints: tuple[dict[str, Any], ...]
    edges: tuple[Edge, ...]
    verdict: Literal["passed", "held"]
    reasons: tuple[str, ...]
    metrics: dict[str, float]
    spec_digest: Sha256
    data: dict[str, str]
    digest: str
    files: dict[FileName, Sha256]
    manifest: Sha256
    code_version: str
    created: str
    version: int = 0
    training: dict[str, str] = field(default_factory=dict)
    evidence: dict[FileName, Sha256] = field(default_factory=dict)
    certificate: dict[str, Any] | None = None
    schema: Literal[1] = SCHEMA

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.manifest != manifest_digest(self.files):
            raise ValueError("manifest is not the digest of files")
        return self

    @property
    def ancestors(self) -> tuple[Edge, ...]:
        """Return the edges to ancestors, nearest first."""
        return tuple(edge for edge in self.edges if edge.relation == "ancestor")

    def partners(self, relation: Relation) -> tuple[Edge, ...]:
        """Return the edges of a relation that count for the fleet: the nearest gallery, and what was not held."""
        edges = [edge for edge in self.edges if edge.relation == relation]
        first = edges[:1] if relation == "gallery" else []
        return tuple(edge for edge in edges if edge.verdict != "held" or edge in first)

    @property
    def label(self) -> str:
        """Name of the version in messages."""
        return f"{self.model} {self.name} ({self.model_id})"

    @property
    def worst(self) -> float | None:
        """Return the highest measured negative flip rate, a fraction; None for a first link."""
        return max((edge.value for edge in self.edges if edge.value is not None), default=None)

    def to_json(self) -> str:
        """Render `lineage.json`: indented, sorted keys; equal records give equal bytes."""
        left_out = {"version", *(("certificate",) if self.certificate is None else ())}
        document = {key: value for key, value in asdict(self).items() if key not in left_out}
        for edge in document["edges"]:
            if edge["relation"] == "ancestor":  # records without query models are as they were before there were any
                del edge["relation"]
        return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = "lineage.json") -> LineageRecord:
        """Read what `to_json` wrote.

        Raises:
            RegistryError: Not JSON, another schema, or a field is missing, unknown or out of range; one line.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise RegistryError(f"{where}: not JSON ({e}); restore it or register the version again") from e
        version = raw.get("schema") if isinstance(raw, dict) else None
        if version != SCHEMA:
            raise RegistryError(
                f"{where}: schema is {version!r}, this graceful reads {SCHEMA}; use the one that wrote it"
            )
        try:
            return _reader().validate_python(raw)
        except ValidationError as e:
            raise RegistryError(f"{where}: {section_errors.summary(e, 'record')}; restore the file") from e


@functools.cache
def _reader() -> TypeAdapter[LineageRecord]:
    """Return the reader of records, made once because that takes longer than reading one."""
    return TypeAdapter(LineageRecord)


def parent_tag(model_id: str) -> str:
    """Return the key of the tag by which children of a version can be searched."""
    return _PARENT + model_id.replace("-", "_")


def spec_digest(spec: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the spec's keys that determine the result, as the spec itself computes it.

    Raises:
        SpecError: Not a spec of a refresh.
    """
    return parse(spec).digest()


def manifest_text(files: Mapping[str, str]) -> str:
    """Return `manifest.sha256` as `sha256sum --check` reads it."""
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(files.items()))


def manifest_digest(files: Mapping[str, str]) -> str:
    """Return one digest for all registered files."""
    return hashlib.sha256(manifest_text(files).encode()).hexdigest()


def edges(report: Report, verdict: Verdict) -> tuple[Edge, ...]:
    """Return the report's numbers and the gate's outcome for each ancestor, nearest first."""
    return tuple(
        _edge(report, verdict, index)
        for index in sorted(range(len(report.comparisons)), key=lambda index: report.comparisons[index].distance)
    )


def _edge(report: Report, verdict: Verdict, index: int) -> Edge:
    comparison = report.comparisons[index]
    flips = comparison.measurements.get(NFR)
    findings = [finding for finding in verdict.findings if finding.against == comparison.against]
    bounds = [finding.constraint.bound for finding in findings if finding.constraint.metric == NFR]
    judged: Judged = "unjudged" if not findings else "passed" if all(finding.met for finding in findings) else "held"
    return Edge(
        model_id=comparison.model_id,
        name=comparison.against,
        distance=comparison.distance,
        value=None if flips is None else flips.value,
        lower=None if flips is None else flips.lower,
        upper=None if flips is None else flips.upper,
        bound=min(bounds, default=None),
        verdict=judged,
        relation=comparison.relation,
        metrics={
            name: measurement.value
            for name, measurement in comparison.measurements.items()
            if measurement.value is not None
        },
    )
