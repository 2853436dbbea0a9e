"""`graceful compare-search` on real indices: two models, judged pairs, an adapter, what is refused, table and page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import ortho_group

from graceful import adapters
from graceful.errors import DataError, SpecError
from graceful.index import Index, Space, Vectors, files
from graceful.programs import __main__ as main
from graceful.programs.searches.comparing import Asked, compare
from graceful.storage import sha256_json
from graceful.views import search_difference

SPACES = {name: Space(name=name, dimension=8, model=sha256_json(name)) for name in ("old", "new")}
CLASSES = np.array(list("abcdefgh"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two indices of the same items by two models, and their queries: new is old turned, with less noise."""
    folder, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    rotation = ortho_group.rvs(8, random_state=0)
    for part, count in (("items", 300), ("queries", 80)):
        latent = rng.normal(size=(count, 8))
        payload: dict[str, Any] = {"label": CLASSES[latent.argmax(axis=1)]}
        if part == "queries":
            payload["kind"] = np.where(np.arange(count) < 60, "often", "rare")
        by_model = {"new": latent, "old": (latent + 0.7 * rng.normal(size=latent.shape)) @ rotation}
        for name, vectors in by_model.items():
            ids = np.array([f"{part}-{row:03d}" for row in range(count)])
            found = Vectors(ids=ids, vectors=vectors.astype(np.float32), payload=payload)
            if part == "items":
                Index.create(folder / name, found, SPACES[name])
            else:
                files.write(folder / f"{name}.npz", found, SPACES[name])
    return folder


def asked(made: Path, **changes: Any) -> Asked:
    queries = (str(made / "old.npz"), str(made / "new.npz"))
    return replace(Asked(a=str(made / "old"), b=str(made / "new"), queries=queries), **changes)


def test_two_models_compare_by_labels_and_slices_as_table_and_page(made: Path, tmp_path: Path) -> None:
    found = compare(asked(made, slices=("kind",), html=str(tmp_path / "page.html")))
    assert found.queries == 80
    gain = found.metrics["gain_recall_at_1"]
    assert (gain.lower or 0.0) > 0.0
    assert gain.value == pytest.approx(found.metrics["b_recall_at_1"].value - found.metrics["a_recall_at_1"].value)  # type: ignore[operator]
    assert [(value, metrics["overlap_at_10"].n) for _, value, metrics in found.slices] == [("often", 60), ("rare", 20)]
    assert found.worst[0]["b_ndcg"] - found.worst[0]["a_ndcg"] <= found.worst[1]["b_ndcg"] - found.worst[1]["a_ndcg"]
    console = Console(width=200)
    with console.capture() as printed:
        console.print(search_difference.screen(found))
    text, page = printed.get(), (tmp_path / "page.html").read_text(encoding="utf-8")
    for shown in ("retrieval_nfr", "kind rare", "20 (few)", found.worst[0]["query"]):
        assert shown in text
        assert shown in page
    assert json.loads(json.dumps(found.document()))["slices"][1]["value"] == "rare"


def test_judged_pairs_and_clicks_replace_labels(made: Path, tmp_path: Path) -> None:
    (tmp_path / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\nqueries-000\titems-000\t2\nqueries-001\titems-001\t1\n"
    )
    (tmp_path / "clicks.csv").write_text("queries-000,items-000\nqueries-001,items-001\n")
    for name in ("qrels.tsv", "clicks.csv"):
        found = compare(asked(made, relevance=str(tmp_path / name)))
        assert found.metrics["retrieval_nfr"].n == 2
    (tmp_path / "bad.csv").write_text("queries-000,items-000,1\nqueries-001,items-001,much\n")
    with pytest.raises(DataError, match=r"bad\.csv: line 2 must be query, item and a grade, or query and item"):
        compare(asked(made, relevance=str(tmp_path / "bad.csv")))


def test_an_adapter_searches_the_old_index_with_new_queries(made: Path, tmp_path: Path) -> None:
    vectors = {name: Index.open(made / name).view().read(name).vectors for name in SPACES}
    sides = {"source": "new", "target": "old"}
    ends = {side: {"name": name, "digest": SPACES[name].model, "dimension": 8} for side, name in sides.items()}
    described = {"model": "m-adapter", "name": "a", "side": "queries", "kind": "procrustes", "fitted": {}, **ends}
    adapters.save(tmp_path, adapters.procrustes(vectors["new"], vectors["old"]), described)
    found = compare(asked(made, b=str(made / "old"), adapter=str(tmp_path)))
    plain = compare(asked(made, b=str(made / "old")))
    assert plain.metrics["overlap_at_10"].value == 1.0
    assert found.metrics["b_recall_at_1"].value > found.metrics["a_recall_at_1"].value  # type: ignore[operator]
    with pytest.raises(SpecError, match="maps queries of new, the queries are of old"):
        compare(asked(made, b=str(made / "old"), adapter=str(tmp_path), queries=(str(made / "old.npz"),)))


def test_what_cannot_be_compared_is_one_line(made: Path, tmp_path: Path) -> None:
    vectors, _ = files.read(made / "new.npz")
    few = tmp_path / "few.npz"
    np.savez(few, ids=vectors.ids[:5], vectors=vectors.vectors[:5])
    with pytest.raises(SpecError, match="has vectors of new, the queries are of old"):
        compare(asked(made, queries=(str(made / "old.npz"),)))
    with pytest.raises(SpecError, match="does not say which model made its vectors; write SPACE="):
        compare(asked(made, queries=(str(few),)))
    with pytest.raises(SpecError, match=r"has other ids than the first file, e\.g\. 'queries-005'"):
        compare(asked(made, queries=(str(made / "old.npz"), f"new={few}")))
    with pytest.raises(SpecError, match="--slice town: the queries have no such column; they have label, kind"):
        compare(asked(made, slices=("town",)))


def test_without_labels_overlap_alone_is_measured(made: Path, tmp_path: Path) -> None:
    for name in SPACES:
        vectors, space = files.read(made / f"{name}.npz")
        assert space is not None
        files.write(tmp_path / f"{name}.npz", replace(vectors, payload={}), space)
    found = compare(asked(made, queries=tuple(str(tmp_path / f"{name}.npz") for name in SPACES)))
    assert set(found.metrics) == {"overlap_at_10", "rank_biased_overlap", "first_result_changed"}
    assert "no relevance is known" in found.notes[0]
    assert found.worst[0]["rank_biased_overlap"] <= found.worst[1]["rank_biased_overlap"]


def test_the_program_prints_json(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = [str(made / f"{name}.npz") for name in SPACES]
    monkeypatch.setattr(main, "_document", lambda: {"a": str(made / "old"), "b": str(made / "new"), "queries": queries})
    assert main.main(["compare-search", "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["overlap_at_10"]["n"] == 80


def test_a_query_is_not_its_own_result(made: Path, tmp_path: Path) -> None:
    for name, space in SPACES.items():
        files.write(tmp_path / f"{name}.npz", Index.open(made / name).view().read(name), space)
    found = compare(asked(made, queries=tuple(str(tmp_path / f"{name}.npz") for name in SPACES), k=5, worst=300))
    assert found.queries == 300
    assert not any(row["query"] in row["a"] or row["query"] in row["b"] for row in found.worst)
    assert all(len(row["a"]) == 5 for row in found.worst)
    assert 0.2 < (found.metrics["b_recall_at_1"].value or 0.0) < 1.0
