"""Chains of versions with embeddings of different length: which components of which side are compared, and learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graceful import spec
from graceful.losses.influence import Influence
from graceful.metrics.compatibility import rank_between
from graceful.metrics.inputs import VersionOutputs
from graceful.metrics.predictions import Predictions
from graceful.metrics.retrieval import Embeddings, rank
from graceful.models.base import Outputs
from graceful.programs.outputs.pairs import pairs
from graceful.training.objective import Objective, OldVersion
from tests.support import loss_oracles, metric_oracles

LABELS = np.array(["a", "b", "c"])


def embeddings(vectors: Any, labels: str, prefix: str) -> Embeddings:
    ids = np.array([f"{prefix}{row}" for row in range(len(labels))])
    return Embeddings(ids=ids, labels=np.array(list(labels)), vectors=np.asarray(vectors, dtype=np.float64))


def test_an_old_query_meets_only_the_old_components_of_a_new_gallery() -> None:
    """Cosines on two components 0.99 and 0.80; with the third one the right item has length 10 and cosine 0.09."""
    query = embeddings([[1.0, 0.0]], "a", "q")
    gallery = embeddings([[0.9, 0.1, 10.0], [0.8, 0.6, 0.0]], "ab", "g")
    assert rank_between(query, gallery, older="queries").first_hit.tolist() == [1]
    assert rank(query.aligned(3), gallery).first_hit.tolist() == [2], "what padding the old query would find"


def test_a_new_query_meets_an_old_gallery_by_its_first_components() -> None:
    query = embeddings([[1.0, 0.0, 50.0]], "a", "q")
    gallery = embeddings([[0.9, 0.1], [0.0, 1.0]], "ab", "g")
    assert rank_between(query, gallery, older="gallery").first_hit.tolist() == [1]


def test_a_shorter_new_query_is_padded() -> None:
    """The old items keep their third component: cosines 0.71 and 0.80, where cutting would make them 1 and 0.80."""
    query, gallery = embeddings([[1.0, 0.0]], "a", "q"), embeddings([[1.0, 0.0, 1.0], [0.8, 0.6, 0.0]], "ab", "g")
    assert rank_between(query, gallery, older="gallery").first_hit.tolist() == [2]


def voice(name: str, size: int, seed: int, count: int = 24) -> VersionOutputs:
    rng = np.random.default_rng(seed)
    labels = LABELS[np.arange(count) % 3]
    ids = np.array([f"i{row:02d}" for row in range(count)])
    return VersionOutputs(
        name=name,
        predictions=Predictions(ids=ids, labels=labels, predicted=rng.permutation(labels)),
        queries=Embeddings(ids=ids, labels=labels, vectors=rng.normal(size=(count, size))),
        gallery=Embeddings(ids=np.char.add(ids, "-g"), labels=labels, vectors=rng.normal(size=(count, size))),
    )


def cut(vector: Any, size: int) -> list[float]:
    return [*vector[:size], *[0.0] * (size - len(vector))]


def test_every_cell_of_a_chain_of_sizes_equals_brute_force() -> None:
    """Growing and shrinking: 4, 6, 3 components; the newer side takes the older one's length."""
    sizes = (4, 6, 3)
    versions = [voice(f"v{index}", size, seed=index) for index, size in enumerate(sizes)]
    found = pairs(versions)
    assert found["embedding_sizes"] == [4, 6, 3]
    assert found["compat_slice"] == [[4, 4, 4], [4, 6, 6], [4, 6, 3]]
    for asked, left in enumerate(versions):
        for kept, right in enumerate(versions):
            size = sizes[min(asked, kept)]
            queries, gallery = left.queries, right.gallery
            assert queries is not None
            assert gallery is not None
            items = [
                (name, label, cut(vector, size))
                for name, label, vector in zip(gallery.ids, gallery.labels, gallery.vectors, strict=True)
            ]
            hits = [
                metric_oracles.ranked_hits((name, label, cut(vector, size)), items)
                for name, label, vector in zip(queries.ids, queries.labels, queries.vectors, strict=True)
            ]
            assert found["recall_at_1"][asked][kept] == pytest.approx(np.mean([one[0] for one in hits]))
            precisions = [metric_oracles.average_precision(one) for one in hits]
            assert found["map"][asked][kept] == pytest.approx(np.mean([p for p in precisions if p is not None]))


def test_both_diagonals_are_reported_and_a_missing_one_is_never_zero() -> None:
    versions = [voice("v1", 4, 1), voice("v2", 4, 2), voice("v3", 4, 3)]
    free = [voice("free-2", 4, 12), voice("free-2b", 4, 13)]
    found = pairs(versions, references={"v1": [versions[0]], "v2": free})
    first, second, third = found["independent"]["recall_at_1"]
    assert first == found["recall_at_1"][0][0], "it was trained without predecessors"
    alone = [pairs([one])["recall_at_1"][0][0] for one in free]
    assert second == pytest.approx(np.mean(alone))
    assert third is None
    summary = found["summary_recall_at_1"]
    bars = [first, second]
    expected = [found["recall_at_1"][i][j] > bars[j] for i in range(3) for j in range(i)]
    assert summary["average_compatibility_independent"]["value"] == pytest.approx(np.mean(expected))
    assert summary["update_gain"] is None, "the newest version has no unconstrained run"
    missing = pairs(versions)["summary_recall_at_1"]["average_compatibility_independent"]
    assert missing["value"] is None
    assert missing["reason"] == "3 of 3 pairs are missing"


def test_ties_are_counted_on_either_diagonal() -> None:
    one = voice("v1", 4, 1)
    same = VersionOutputs(name="v2", predictions=one.predictions, queries=one.queries, gallery=one.gallery)
    found = pairs([one, same], references={"v1": [one], "v2": [one]})["summary_recall_at_1"]
    for diagonal in ("average_compatibility", "average_compatibility_independent"):
        assert (found[diagonal]["value"], found[diagonal]["ties"]) == (0.0, 1)
    assert found["self_discount"] == 0.0
    assert found["update_gain"][0]["value"] is None, "nothing could be gained"


# --- learning ---------------------------------------------------------------------------------------------------------


def head(inputs: int, outputs: int, seed: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    layer.weight.copy_(torch.randn(outputs, inputs, generator=generator))
    layer.bias.copy_(torch.randn(outputs, generator=generator))
    return layer


def test_influence_gives_each_predecessor_its_own_slice_classes_and_prototypes() -> None:
    """Three predecessors: short with other class order, long without one class, and one whose head is lost."""
    classes, batch = ("a", "b", "c", "d"), 8
    known = (("c", "a"), ("d", "b", "a"), ("b",))
    sizes = (3, 7, 5)
    generator = torch.Generator().manual_seed(0)
    rows = [F.normalize(torch.randn(4, size, generator=generator), dim=1) for size in sizes]
    heads: list[Any] = [head(3, 2, seed=1), head(7, 3, seed=2), None]
    versions = [
        OldVersion(
            name=f"v{index}", classes=known[index], embedding_size=sizes[index], head=heads[index], prototypes=row
        )
        for index, row in enumerate(rows)
    ]
    embedding, labels = torch.randn(batch, 6, generator=generator), torch.arange(batch) % 4
    section = spec.Compatibility(losses=(Influence(scale=4.0),))
    parts = Objective(section, classes, versions)(Outputs(embedding, torch.randn(batch, 4)), labels).parts
    for index, (names, size) in enumerate(zip(known, sizes, strict=True)):
        aligned = loss_oracles.aligned(embedding, size)
        layer = heads[index]
        heard = names if layer is not None else ()
        columns = [] if layer is None else [aligned @ layer.weight.double().numpy().T + layer.bias.double().numpy()]
        unseen = [position for position, name in enumerate(classes) if name not in heard]
        cosines = [4 * loss_oracles.cosine(aligned, np.tile(rows[index][c], (batch, 1))) for c in unseen]
        logits = np.concatenate([*columns, np.stack(cosines, 1)], 1)
        order = [*heard, *(classes[c] for c in unseen)]
        target = [order.index(classes[label]) for label in labels.tolist()]
        expected = loss_oracles.cross_entropy(logits, target).mean()
        assert parts[f"influence/v{index}"].item() == pytest.approx(expected, rel=1e-5)
