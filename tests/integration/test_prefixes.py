"""A chain of growing embeddings, trained in this process: prefixes of later versions search every earlier gallery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graceful import spec, tasks
from graceful.models import bundle
from graceful.programs.evaluation.matrix import chosen, matrix
from tests.support.runs import train

pytestmark = pytest.mark.integration
LOSSES = [{"kind": "influence"}, {"kind": "embedding_regression", "weight": 5.0}]


def document(name: str, *, classes: int, share: float, size: int, losses: list[Any]) -> spec.RefreshSpec:
    network = {"embedding": size, "head": "cosine"}
    recipe = {"epochs": 8, "batch_size": 32, "num_workers": 0, "engine": {"kind": "torch"}, "optimizer": {"lr": 0.1}}
    return spec.parse(
        {
            "model": "digits",
            "name": name,
            "task": {"kind": "digits", "classes": classes, "share": share, "network": network},
            "train": recipe,
            "compatibility": {"against": "all", "losses": losses},
        }
    )


def test_a_chain_of_growing_embeddings_and_classes_stays_searchable_by_prefixes(tmp_path: Path) -> None:
    """8, 16, 24 components and 7, 9, 10 digits: v3 has prototypes of its own against either predecessor."""
    folders: list[Path] = []
    for name, classes, share, size in (("v1", 7, 0.5, 8), ("v2", 9, 0.7, 16), ("v3", 10, 1.0, 24)):
        asked = document(name, classes=classes, share=share, size=size, losses=LOSSES)
        folders.insert(0, train(asked, run_dir=tmp_path / name, home=tmp_path, ancestors=folders).folder)
    free = document("free", classes=9, share=0.7, size=16, losses=[])
    folders.insert(0, train(free, run_dir=tmp_path / "free", home=tmp_path).folder)
    versions = [bundle.load(folder) for folder in reversed(folders)]
    found = matrix(asked, tasks.build(asked.task), versions)
    assert found["compat_slice"] == [[8, 8, 8, 8], [8, 16, 16, 16], [8, 16, 24, 24], [8, 16, 24, 16]]
    recall = found["recall_at_1"]
    assert min(recall[1][0], recall[2][0], recall[2][1]) > 0.6, "new queries on old galleries"
    assert min(recall[0][1], recall[0][2], recall[1][2]) > 0.3, "queries of old clients on new galleries"
    bought = [recall[row][gallery] - recall[3][gallery] for row, gallery in ((1, 0), (2, 1), (1, 2))]
    assert min(bought) > 0.2, "beside the run without constraints on the same galleries"
    assert [version.name for version in chosen(versions, ["v3", "v1"])] == ["v1", "v3"], "in the order of the chain"
