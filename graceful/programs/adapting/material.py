"""What an adapter is fitted and measured on: vectors of the same samples by two versions. Driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from graceful.adapters import Adapter, Pairs, Side
from graceful.adapters.bundle import End
from graceful.chain import Predecessor
from graceful.errors import DataError, SpecError
from graceful.learners.base import Role
from graceful.metrics.retrieval import Embeddings, Ranking, rank
from graceful.programs.outputs.kept_outputs import KeptOutputs
from graceful.programs.outputs.model_outputs import Evaluated, answers_on_split, split_answers
from graceful.spec import RefreshSpec
from graceful.tasks.base import Samples, Task


@dataclass(frozen=True, kw_only=True, eq=False)
class Searched:
    """What one version says of the queries and of the gallery."""

    queries: Embeddings
    gallery: Embeddings


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """Two versions' vectors of the same samples.

    Attributes:
        old: Of the version whose gallery is there.
        new: Of the version whose queries come.
        train: Vectors of training samples by both; source is what the adapter maps.
        validation: The same of other samples.
        old_searches: Its queries and gallery, which the adapter never saw.
        new_searches: Those of the new version.
        data: Split -> SHA-256 of its samples.
    """

    old: End
    new: End
    side: Side
    train: Pairs
    validation: Pairs
    old_searches: Searched
    new_searches: Searched
    data: Mapping[str, str]

    @property
    def ends(self) -> dict[str, End]:
        """Return source and target of the map."""
        source, target = (self.new, self.old) if self.side == "queries" else (self.old, self.new)
        return {"source": source, "target": target}

    def rankings(self, adapter: Adapter) -> dict[str, Ranking]:
        """Return the searches with the adapter (`adapted`), of before (`old_old`), and after embedding all again
        (`full`)."""
        old, new = self.old_searches, self.new_searches
        if self.side == "queries":
            between = adapter.described.share < 1.0
            mapped = adapter(new.queries.vectors, old=old.queries.vectors if between else None)
            adapted = rank(replace(new.queries, vectors=mapped), old.gallery)
        else:
            adapted = rank(new.queries, replace(old.gallery, vectors=adapter(old.gallery.vectors)))
        return {
            "adapted": adapted,
            "old_old": rank(old.queries, old.gallery),
            "full": rank(new.queries, new.gallery),
        }


def of_versions(
    spec: RefreshSpec, task: Task, *, old: Predecessor, new: Predecessor, kept: KeptOutputs, names: tuple[str, str]
) -> Material:
    """Run both versions on the samples of a task; what they said of a whole split before is read.

    Args:
        spec: Of the adapter.
        task: Whose samples; each version sees them through its own transform.
        old: The version whose gallery is there.
        new: The version whose queries come.
        kept: Where answers of earlier evaluations are.
        names: Of old and new, for people.

    Raises:
        SpecError: The training rows are a stream.
        DataError: A split is empty.
    """
    section = spec.adapter
    assert section is not None, "the spec of an adapter"
    role: Role = "query" if section.side == "queries" else "gallery"
    samples = Evaluated.of(task, with_retrieval=True, kept=kept)
    assert samples.query is not None, "asked for with retrieval"
    assert samples.gallery is not None, "asked for with retrieval"
    train, validation = task.samples("train"), task.samples("validation")
    if train.stream is not None:
        raise SpecError(
            "task: its training rows are a stream, and an adapter needs rows that can be read by both versions"
        )
    size = spec.evaluate.batch_size

    def vectors(version: Predecessor, split: Samples, role: Role) -> NDArray[np.float32]:
        if len(split) > section.pairs and split in (train, validation):
            rows = np.linspace(0, len(split) - 1, section.pairs).astype(np.int64)
            said = answers_on_split(version, split, size, role=role, embeddings=True, positions=rows)
        else:
            said = split_answers(version, split, kept, size, role=role, embeddings=True)
        assert said.embeddings is not None, "asked for"
        return said.embeddings

    def searched(version: Predecessor) -> Searched:
        assert samples.query is not None, "seen above"
        assert samples.gallery is not None, "seen above"
        return Searched(
            queries=_embeddings(samples.query, vectors(version, samples.query, "query")),
            gallery=_embeddings(samples.gallery, vectors(version, samples.gallery, "gallery")),
        )

    def pairs(split: Samples) -> Pairs:
        return Pairs(
            source=vectors(new if section.side == "queries" else old, split, role),
            target=vectors(old if section.side == "queries" else new, split, role),
        )

    return Material(
        old=_end(old, names[0]),
        new=_end(new, names[1]),
        side=section.side,
        train=pairs(train),
        validation=pairs(validation),
        old_searches=searched(old),
        new_searches=searched(new),
        data={**samples.digests, "train": train.digest, "validation": validation.digest},
    )


def _end(version: Predecessor, name: str) -> End:
    return End(
        name=name,
        model_id=version.model_id,
        digest=version.digest,
        contract="" if version.contract is None else version.contract.digest,
        dimension=version.embedding_size,
    )


def _embeddings(samples: Samples, vectors: NDArray[np.float32]) -> Embeddings:
    return Embeddings(
        ids=np.asarray(samples.ids),
        labels=np.asarray(samples.classes)[samples.labels],
        vectors=vectors,
        groups=np.asarray(samples.groups),
        judgments=samples.judgments,
    )


def require_finite(pairs: Pairs, *, name: str) -> Pairs:
    """Return the pairs whose vectors are both finite and of some length.

    Raises:
        DataError: Too few are.
    """
    good = np.ones(len(pairs), dtype=np.bool_)
    for vectors in (pairs.source, pairs.target):
        with np.errstate(invalid="ignore", over="ignore"):
            length = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1))
        good &= np.isfinite(length) & (length > 0.0)
    if good.sum() < 2:
        raise DataError(f"adapter: {int(good.sum())} of {len(pairs)} {name} pairs have two vectors that can be used")
    return Pairs(source=pairs.source[good], target=pairs.target[good])
