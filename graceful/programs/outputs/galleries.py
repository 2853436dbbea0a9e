"""Query models and gallery models in a refresh: which are compared, and whether they may be. Runs in the driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from graceful import catalogue
from graceful.catalogue import About
from graceful.chain import Predecessor
from graceful.chain.ancestor import Ancestor, Link
from graceful.errors import SpecError
from graceful.metrics.inputs import VersionOutputs
from graceful.metrics.query_gallery import measure_pair
from graceful.models.embedding_contract import contract_of, difference
from graceful.programs.outputs.model_outputs import Evaluated, run_versions
from graceful.report import Comparison, Measurement, Relation
from graceful.spec import RefreshSpec
from graceful.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class FleetVersions:
    """What a new version must work with without descending from it.

    Attributes:
        galleries: The gallery models that it searches, the one that it was trained against first.
        queries: The query models that search its index.
        baseline: A model of its cost that was trained alone; None: none is known.
    """

    galleries: tuple[Predecessor, ...] = ()
    queries: tuple[Predecessor, ...] = ()
    baseline: Predecessor | None = None

    @classmethod
    def of(cls, ancestors: Sequence[Ancestor]) -> Self | None:
        """Return those among what a run fetched; None where there are none."""
        by_role: dict[str, list[Predecessor]] = {"gallery": [], "query": [], "baseline": []}
        for ancestor in ancestors:
            if ancestor.link is not None and not ancestor.is_ancestor:
                by_role[ancestor.link.role].append(ancestor.stored.open())
        if not any(by_role.values()):
            return None
        return cls(
            galleries=tuple(by_role["gallery"]),
            queries=tuple(by_role["query"]),
            baseline=next(iter(by_role["baseline"]), None),
        )


def fleet_of(links: Sequence[Link]) -> dict[str, list[str]]:
    """Return the names of galleries and query models for a line of progress; empty where there are none."""
    roles = {"galleries": "gallery", "queries": "query"}
    names = {key: [link.name for link in links if link.role == role] for key, role in roles.items()}
    return {key: found for key, found in names.items() if found}


def require_gallery(spec: RefreshSpec, ancestors: Sequence[Ancestor], *, task: Task) -> Ancestor | None:
    """Return the gallery model that a query model is trained against; None for versions that are none.

    Raises:
        SpecError: It cannot be run, or its embeddings are made or compared in another way.
    """
    if spec.gallery is None:
        return None
    gallery = next((item for item in ancestors if item.link is not None and item.link.role == "gallery"), None)
    if gallery is None:
        raise SpecError("gallery: a query model needs its gallery model from the registry; run `graceful refresh`")
    version = gallery.stored.open()
    if version.unrunnable_reason:
        raise SpecError(f"gallery.version: {version.name}: {version.unrunnable_reason}; {version.remedy}")
    with torch.random.fork_rng(devices=[]):
        size = getattr(task.network(task.classes), "embedding_size", None)
    contract = contract_of(spec.task, size if isinstance(size, int) else version.embedding_size)
    differing = None
    if version.contract is not None:
        differing = difference(contract, version.contract, allowed=spec.gallery.may_differ)
    if differing is not None:
        raise SpecError(
            f"gallery.version: {version.name} has another embedding contract than this query model: {differing};"
            " give both the same, or name what may differ in gallery.may_differ (never the dimension)"
        )
    return gallery


def compare_pairs(
    spec: RefreshSpec,
    outputs: VersionOutputs,
    new: Predecessor,
    fleet: FleetVersions,
    samples: Evaluated,
    *,
    first: int,
) -> tuple[Comparison, ...]:
    """Measure the new version with each gallery model, or with each query model of its own index.

    Args:
        spec: For draws, seed, batch size and what may differ in contracts.
        outputs: What the new version said.
        new: The new version.
        fleet: The others.
        samples: What they are asked about.
        first: Distance of the first comparison.
    """
    baseline = None
    if fleet.baseline is not None:
        baseline = run_versions([fleet.baseline], samples, batch_size=spec.evaluate.batch_size)[0]
    partners: list[tuple[Relation, Predecessor]] = [("gallery", version) for version in fleet.galleries]
    partners += [("query", version) for version in fleet.queries]
    comparisons = []
    for distance, (relation, version) in enumerate(partners, start=first):
        reason = _incomparable(spec, new, version, relation)
        measurements = dict.fromkeys(catalogue.named(About.PAIR), Measurement(value=None, reason=reason))
        if reason is None:
            other = run_versions([version], samples, batch_size=spec.evaluate.batch_size)[0]
            query, gallery = (outputs, other) if relation == "gallery" else (other, outputs)
            draws, seed = spec.evaluate.bootstrap, spec.train.seed
            measurements = measure_pair(query, gallery, baseline=baseline, draws=draws, seed=seed)
        comparisons.append(
            Comparison(
                against=version.name,
                model_id=version.model_id,
                distance=distance,
                measurements=measurements,
                relation=relation,
            )
        )
    return tuple(comparisons)


def _incomparable(spec: RefreshSpec, new: Predecessor, other: Predecessor, relation: Relation) -> str | None:
    """Return why two models cannot be compared, as a sentence; None where they can."""
    if other.unrunnable_reason:
        return f"{other.name} cannot be run, {other.unrunnable_reason}; {other.remedy}"
    if new.contract is None or other.contract is None:
        return None
    query, gallery = (new, other) if relation == "gallery" else (other, new)
    assert query.contract is not None and gallery.contract is not None  # noqa: PT018
    allowed = spec.gallery.may_differ if spec.gallery is not None else ("preprocessing", "resolution")
    differing = difference(query.contract, gallery.contract, allowed=allowed)
    return None if differing is None else f"the embedding contracts of query and gallery model differ: {differing}"


def unjudged(spec: RefreshSpec, pairs: Sequence[Comparison]) -> list[str]:
    """Return a sentence where no constraint of the spec is about the measured pairs."""
    asked = {item.metric for item in spec.gate.constraints}
    if asked & set(catalogue.named(About.PAIR)):
        return []
    names = ", ".join(item.against for item in pairs)
    return [
        f"no constraint of this spec is about its pairs with {names}; write e.g."
        " {metric: pair_gain_map, direction: above, bound: 0}"
    ]
