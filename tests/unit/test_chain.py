"""Predecessors: frozen, fp32, own transform; label maps by name; selection by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from graceful import chain, models, spec
from graceful.errors import SpecError
from graceful.learners import Classifier


def _predecessor(name: str, transform: Any = lambda items, views: torch.as_tensor(items)) -> chain.Predecessor:
    network = models.build(spec.Network(embedding=4), classes=2, input_shape=(1, 8, 8))
    return chain.Predecessor(
        name=name,
        model_id=f"m-{name}",
        digest="0" * 64,
        classes=("a", "b"),
        embedding_size=4,
        network=chain.freeze(network),
        learner=Classifier(transform),
        transform_digest="1" * 64,
    )


def test_labels_are_mapped_by_name_not_by_index() -> None:
    # added (new), removed (gone), re-indexed (a, b)
    assert chain.label_map(("b", "new", "a"), ("a", "gone", "b")).tolist() == [2, -1, 0]


def test_label_map_of_disjoint_classes_knows_nothing() -> None:
    mapped = chain.label_map(("x", "y"), ("a",))
    assert mapped.tolist() == [-1, -1]
    assert mapped.dtype == torch.int64


def test_select_latest_all_and_by_name() -> None:
    versions = [_predecessor(name) for name in ("v3", "v2", "v1")]
    assert [v.name for v in chain.select(versions, "latest")] == ["v3"]
    assert [v.name for v in chain.select(versions, "all")] == ["v3", "v2", "v1"]
    assert [v.name for v in chain.select(versions, ("v1", "v3"))] == ["v3", "v1"]


def test_select_from_no_versions_is_empty() -> None:
    assert chain.select((), "latest") == ()
    assert chain.select((), "all") == ()


def test_select_refuses_a_name_outside_the_chain() -> None:
    with pytest.raises(SpecError, match=r"'v9' is not an ancestor; the chain has v2, v1"):
        chain.select([_predecessor("v2"), _predecessor("v1")], ("v9",))
    with pytest.raises(SpecError, match="no versions yet"):
        chain.select((), ("v1",))


def test_a_predecessor_uses_its_own_transform_with_the_views() -> None:
    seen: list[Any] = []

    def transform(items: Any, views: Any) -> torch.Tensor:
        seen.append(views)
        return torch.as_tensor(items).float() * 2.0

    version = _predecessor("v1", transform)
    items, views = torch.ones(3, 1, 8, 8), np.arange(3, dtype=np.uint64)
    outputs = version(items, views)
    assert seen[0] is views
    torch.testing.assert_close(outputs.embedding, version.network.embed(2.0 * items))
    assert outputs.logits.shape == (3, 2)


def test_frozen_networks_stay_in_fp32_without_gradients_even_under_autocast() -> None:
    network = chain.freeze(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).bfloat16())
    assert not network.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in network.parameters())
    version = _predecessor("v1")
    items = torch.rand(2, 1, 8, 8)
    wanted = version(items)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = version(items)
    assert outputs.logits.dtype == torch.float32
    assert torch.equal(outputs.logits, wanted.logits)
    assert not outputs.logits.requires_grad
