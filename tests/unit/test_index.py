"""Galleries: spaces, commits, exact search, files of vectors, and what is refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from graceful.errors import DataError, SpecError
from graceful.index import Index, Space, Vectors, exact, files
from graceful.metrics.retrieval import normalised
from graceful.programs.indexing import program

OLD = Space.declared("minilm", 8, model="all-MiniLM-L6-v2")
NEW = Space.declared("e5", 8, model="multilingual-e5-small")
Command = Callable[..., "subprocess.CompletedProcess[str]"]


def vectors(count: int = 40, *, seed: int = 0, prefix: str = "x", dimension: int = 8) -> Vectors:
    generator = np.random.default_rng(seed)
    ids = np.asarray([f"{prefix}{number:03d}" for number in range(count)])
    made = generator.normal(size=(count, dimension)).astype(np.float32)
    return Vectors(ids=ids, vectors=made, payload={"label": ids, "shelf": np.arange(count)})


def ranked(queries: NDArray[Any], gallery: Vectors, k: int) -> tuple[list[list[str]], NDArray[np.float64]]:
    """The definition: all cosines in double precision, rounded to 2^-24, then by id."""
    scores = np.rint((normalised(queries) @ normalised(gallery.vectors).T) * 2**24) / 2**24
    order = np.lexsort((np.broadcast_to(gallery.ids, scores.shape), -scores), axis=1)[:, :k]
    return gallery.ids[order].tolist(), np.take_along_axis(scores, order, axis=1)


@pytest.mark.parametrize("count", [1, 7, 40])
def test_exact_search_is_the_definition(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "CELLS", 100)
    made = vectors(count)
    gallery = replace(made, vectors=np.concatenate([made.vectors[: count // 2 + 1], made.vectors])[:count])  # equals
    gallery = gallery.checked(dimension=8, where="here")
    queries = vectors(9, seed=1).checked(dimension=8, where="here").vectors
    hits = exact.search(queries, gallery.vectors, gallery.ids, 10)
    ids, scores = ranked(queries, gallery, 10)
    kept = min(count, 10)
    assert hits.ids[:, :kept].tolist() == ids
    assert np.array_equal(hits.scores[:, :kept], scores)
    assert (hits.ids[:, kept:] == "").all()
    assert np.isneginf(hits.scores[:, kept:]).all()


def test_two_models_of_one_dimension_are_never_mixed_unnoticed(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "index", vectors(), OLD)
    with pytest.raises(SpecError, match=r"takes vectors of minilm .* these are of e5 .* --mixed"):
        index.add(vectors(3, prefix="z"), NEW)
    index.add(vectors(3, prefix="z"), NEW, mixed=True)
    query = vectors(2, prefix="q").vectors
    with pytest.raises(SpecError, match="holds 3 vectors of e5, and the queries are of minilm"):
        index.search({"minilm": query})
    both = index.search({"minilm": query, "e5": query[::-1]}, k=43)
    assert sorted(both.ids[0].tolist()) == sorted([*vectors().ids.tolist(), "z000", "z001", "z002"])
    index.accept(OLD, "e5", reason="tried")
    assert index.search({"minilm": query}, k=3).ids.shape == (2, 3)
    with pytest.raises(SpecError, match="another space called e5"):
        index.add(vectors(1, prefix="w"), replace(NEW, model="other"), mixed=True)


def broken(kind: str) -> Vectors:
    made = vectors()
    if kind in ("nan", "zero"):
        made.vectors[7] = {"nan": np.nan, "zero": 0.0}[kind]
    return {
        "dimension": vectors(dimension=9),
        "ids": replace(made, ids=np.asarray(["x000"] * 40)),
        "empty id": replace(made, ids=np.asarray(["", *made.ids[1:]])),
        "integers": replace(made, vectors=vectors().vectors.astype(np.int64)),
        "payload": replace(made, payload={"label": made.ids[:3]}),
    }.get(kind, made)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "id 'x007' holds NaN or infinity"),
        ("zero", "id 'x007' is all zeros"),
        ("dimension", "vectors of 9 numbers, the space has 8"),
        ("ids", "39 ids repeat, e.g. 'x000'"),
        ("empty id", "must have 1 to 1024 characters"),
        ("integers", "must be floating-point numbers"),
        ("payload", "payload column label must have 40 values"),
    ],
)
def test_vectors_that_are_not_fit_are_refused_whole(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        Index.create(tmp_path / "index", broken(kind), OLD)
    with pytest.raises(DataError, match="holds no index"):
        Index.open(tmp_path / "index")


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_files_of_vectors_say_of_which_space_they_are(suffix: str, tmp_path: Path) -> None:
    made = vectors()
    files.write(tmp_path / f"v{suffix}", made, OLD)
    found, space = files.read(tmp_path / f"v{suffix}")
    assert space == OLD
    assert found.ids.tolist() == made.ids.tolist()
    assert np.array_equal(found.vectors, made.vectors)
    assert {name: column.tolist() for name, column in found.payload.items()} == {
        name: column.tolist() for name, column in made.payload.items()
    }


def test_the_command_line_builds_searches_and_refuses(tmp_path: Path, command_line: Command) -> None:
    files.write(tmp_path / "new.npz", vectors(), NEW)
    plain = vectors(40)
    np.savez(tmp_path / "plain.npz", ids=plain.ids, vectors=plain.vectors, label=plain.ids)
    folder, plain_file = tmp_path / "gallery", tmp_path / "plain.npz"

    def run(*arguments: str | Path, code: int = 0) -> Any:
        done = command_line("index", *arguments)
        assert done.returncode == code, done.stderr
        return done

    refused = run("build", folder, "--vectors", plain_file, code=2)
    assert "does not say which model made its vectors; write --space NAME" in refused.stderr
    run("build", folder, "--vectors", plain_file, "--space", "minilm")
    refused = run("query", folder, "--vectors", tmp_path / "new.npz", code=2)
    assert "queries of e5" in refused.stderr
    assert "index accept" in refused.stderr
    query = ("--vectors", plain_file, "--space", "minilm")
    found = json.loads(run("query", folder, *query, "-k", "2", "-o", "json").stdout)
    first = found["queries"][3]
    assert (first["query"], first["hits"][0]["id"], first["hits"][0]["payload"]) == ("x003", "x003", {"label": "x003"})
    assert len(first["hits"]) == 2
    segment = next((folder / "segments").iterdir())
    segment.write_bytes(segment.read_bytes()[:-1])
    assert "SHA-256" in run("verify", folder, code=4).stdout


def test_programs_say_what_an_index_holds_and_what_they_refuse(tmp_path: Path) -> None:
    made = vectors()
    np.savez(tmp_path / "plain.npz", ids=made.ids, vectors=made.vectors)

    def act(action: str, **parts: Any) -> Any:
        return program.act(program.Action.of({"action": action, "index": str(tmp_path / "gallery"), **parts}), tmp_path)

    source = {"vectors": str(tmp_path / "plain.npz"), "space": "minilm"}
    with pytest.raises(DataError, match="metric 'dot', an index compares by cosine"):
        act("build", source={**source, "metric": "dot"})
    with pytest.raises(SpecError, match="give either --version"):
        act("build")
    act("build", source=source, reason="first", author="me")
    with pytest.raises(SpecError, match=r"has 40 of these ids, e.g. 'x000'; write --replace"):
        act("add", source=source)
    act("add", source=source, replace=True)
    act("delete", ids=["x001"])
    with pytest.raises(DataError, match="has no snapshot 9; it has 1 to 3"):
        act("rollback", to=9)
    act("rollback", to=1, reason="try")
    status = act("status").document
    assert (status["counts"], status["vectors"]) == ({"minilm": 40}, 40)
    assert [item["action"] for item in status["history"]] == ["build", "add", "delete", "rollback"]
    assert act("verify", to=1).code == 0


def test_a_file_of_vectors_that_is_not_there_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothere\.npz: no such file of vectors; check the path") as caught:
        files.read(tmp_path / "nothere.npz")
    assert caught.value.exit_code == 2
