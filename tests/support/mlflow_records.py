"""Records made from nothing, for tests that need no registry."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from graceful.lineage import Edge, LineageRecord, Node
from graceful.lineage.schema import manifest_digest


def node_id(name: str) -> str:
    return "m-" + hashlib.sha256(name.encode()).hexdigest()[:32]


def edge(name: str, distance: int = 1, **changes: Any) -> Edge:
    fields = {"value": 0.0088, "lower": 0.006, "upper": 0.012, "bound": 0.02, "verdict": "passed"}
    return Edge(model_id=node_id(name), name=name, distance=distance, **{**fields, **changes})


def record(name: str, parents: Sequence[str] = (), /, **changes: Any) -> LineageRecord:
    files = {"arch.json": "a" * 64, "model.safetensors": "b" * 64}
    fields: dict[str, Any] = {
        "model": "glyphs",
        "name": name,
        "model_id": node_id(name),
        "refresh_id": f"glyphs-{name}",
        "run_id": "r" * 32,
        "parents": tuple(Node(model_id=node_id(parent), name=parent) for parent in parents),
        "constraints": ({"metric": "negative_flip_rate", "bound": 0.02},),
        "edges": tuple(edge(parent, distance) for distance, parent in enumerate(parents, start=1)),
        "verdict": "passed",
        "reasons": ("fine",),
        "metrics": {"error_rate": 0.121},
        "spec_digest": "c" * 64,
        "data": {"test": "d" * 64},
        "digest": "e" * 64,
        "files": files,
        "manifest": manifest_digest(files),
        "code_version": "0.1.0",
        "created": "2026-01-01T00:00:00+00:00",
    }
    return LineageRecord(**{**fields, **changes})
