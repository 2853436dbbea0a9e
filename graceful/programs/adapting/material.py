"""The data of an adapter: embeddings of the same samples by two versions, to fit and to measure it. Driver."""

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
    """One version's embeddings of the queries and of the gallery."""

    queries: Embeddings
    gallery: Embeddings


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """Two versions' vectors of the same samples.

    Attributes:
        old: The version whose gallery is there.
        new: The version whose queries come.
        side: What the adapter maps: the new queries, or the old gallery.
        train: Vectors of training samples by both versions; `source` is what the adapter maps.
        validation: The same of the validation samples.
        old_searches: Queries and gallery as the old version embeds them; the adapter is not fitted on them.
        new_searches: The same by the new version.
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
        """Return three searches: with the adapter (`adapted`), of the old version alone (`old_old`), and of the new
        version after the whole gallery is embedded again (`full`)."""
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
    """Run both versions on the samples of a task; outputs that are kept of a whole split are read instead.

    Args:
        spec: The spec of the adapter.
        task: Whose samples; each version sees them through its own transform.
        old: The version whose gallery is there.
        new: The version whose queries come.
        kept: Outputs of earlier evaluations.
        names: Names of old and new in reports.

    Raises:
        SpecError: The training rows are a stream.
        DataError: A split is empty.
    """
    section = spec.adapter
    assert section is not None, "the spec of an adapter"
    samples = Evaluated.of(task, with_retrieval=True, kept=kept)
    train, validation = task.samples("train"), task.samples("validation")
    if train.stream is not None:
        raise SpecError(
            "task: its training rows are a stream, and an adapter needs rows that can be read by both versions"
        )
    source, target = (new, old) if section.side == "queries" else (old, new)
    size = spec.evaluate.batch_size

    def pairs(split: Samples) -> Pairs:
        role: Role = "query" if section.side == "queries" else "gallery"
        if len(split) <= section.pairs:
            vectors = [_vectors(version, split, kept, size, role) for version in (source, target)]
        else:
            rows = np.linspace(0, len(split) - 1, section.pairs).astype(np.int64)
            vectors = [_vectors_of_rows(version, split, rows, size, role) for version in (source, target)]
        return Pairs(source=vectors[0], target=vectors[1])

    return Material(
        old=_end(old, names[0]),
        new=_end(new, names[1]),
        side=section.side,
        train=pairs(train),
        validation=pairs(validation),
        old_searches=_searched(old, samples, kept, size),
        new_searches=_searched(new, samples, kept, size),
        data={**samples.digests, "train": train.digest, "validation": validation.digest},
    )


def _vectors(
    version: Predecessor, split: Samples, kept: KeptOutputs, batch_size: int, role: Role
) -> NDArray[np.float32]:
    """Return a version's embeddings of a split, (N, D)."""
    outputs = split_answers(version, split, kept, batch_size, role=role, embeddings=True)
    assert outputs.embeddings is not None, "asked for"
    return outputs.embeddings


def _vectors_of_rows(
    version: Predecessor, split: Samples, rows: NDArray[np.int64], batch_size: int, role: Role
) -> NDArray[np.float32]:
    """Return a version's embeddings of some rows of a split, (rows, D)."""
    outputs = answers_on_split(version, split, batch_size, role=role, embeddings=True, positions=rows)
    assert outputs.embeddings is not None, "asked for"
    return outputs.embeddings


def _searched(version: Predecessor, samples: Evaluated, kept: KeptOutputs, batch_size: int) -> Searched:
    assert samples.query is not None, "an evaluation with retrieval has queries"
    assert samples.gallery is not None, "an evaluation with retrieval has a gallery"
    return Searched(
        queries=_embeddings(samples.query, _vectors(version, samples.query, kept, batch_size, "query")),
        gallery=_embeddings(samples.gallery, _vectors(version, samples.gallery, kept, batch_size, "gallery")),
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
