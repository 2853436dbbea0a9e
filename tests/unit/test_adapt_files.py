"""`graceful adapt` on files of vectors: fitted, judged, searched with, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ortho_group

from graceful import adapters
from graceful.cli.adapting import adapt
from graceful.errors import DataError, SpecError
from graceful.index import Index, Space, Vectors, files
from graceful.programs import __main__ as main
from graceful.programs.adapting.from_files import adapt_files
from graceful.programs.adapting.program import Wanted
from graceful.programs.searches.comparing import Asked, compare

LABELS = np.array(list("abcdefgh"))
BOUNDS = {"adapter_share_recall_at_10": 0.9, "adapter_gain_recall_at_10": -0.1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 600 samples by two models: the new one is the old one turned, longer and with less noise."""
    folder, rng = tmp_path_factory.mktemp("vectors"), np.random.default_rng(0)
    latent = rng.normal(size=(600, 8))
    turned = np.pad(latent, ((0, 0), (0, 2))) @ ortho_group.rvs(10, random_state=0)
    payload: dict[str, Any] = {"label": LABELS[latent.argmax(axis=1)]}
    by_model = {"old": latent + 0.3 * rng.normal(size=latent.shape), "new": turned}
    for name, vectors in by_model.items():
        ids = np.array([f"s{row:03d}" for row in range(600)])
        order = rng.permutation(600)
        found = Vectors(
            ids=ids[order], vectors=vectors[order].astype(np.float32), payload={"label": payload["label"][order]}
        )
        files.write(folder / f"{name}.npz", found, Space.declared(name, vectors.shape[1]))
    return folder


def wanted(made: Path, **changes: Any) -> Wanted:
    asked = Wanted(
        old=str(made / "old.npz"), new=str(made / "new.npz"), kinds=("procrustes", "low_rank"), bounds=BOUNDS
    )
    return replace(asked, **changes)


@pytest.mark.parametrize("side", ["queries", "gallery"])
def test_an_adapter_between_two_files_is_judged_and_searches(made: Path, tmp_path: Path, side: Any) -> None:
    result = adapt_files(wanted(made, side=side), tmp_path / "out", relevance=None)
    assert result["outcome"] == "passed", result["reasons"]
    value = {name: measured["value"] for name, measured in result["metrics"].items()}
    assert value["cross_test_recall_at_1"] > value["old_old_recall_at_1"] - 0.1
    adapter = adapters.load(tmp_path / "out", expected_digest=result["digest"])
    assert (adapter.map.source, adapter.map.target) == ((10, 8) if side == "queries" else (8, 10))
    assert (tmp_path / "out" / "report.html").is_file()
    if side == "gallery":
        return
    vectors, space = files.read(made / "old.npz")
    assert space is not None
    Index.create(tmp_path / "index", vectors, space)
    queries = tuple(str(made / f"{name}.npz") for name in ("old", "new"))
    asked = Asked(a=str(tmp_path / "index"), b=str(tmp_path / "index"), queries=queries, adapter=str(tmp_path / "out"))
    assert compare(asked).metrics["overlap_at_10"].value > 0.3  # type: ignore[operator]


def test_judged_pairs_and_a_column_of_splits(made: Path, tmp_path: Path) -> None:
    splits = np.array((["gallery"] * 7 + ["validation"] + ["query"] * 2) * 60)
    for name in ("old", "new"):
        vectors, space = files.read(made / f"{name}.npz")
        assert space is not None
        chosen = splits[[int(text[1:]) for text in vectors.ids.tolist()]]
        files.write(tmp_path / f"{name}.npz", replace(vectors, payload={"split": chosen}), space)
    pairs = [f"s{row:03d},s{row - row % 10:03d},1" for row in range(600) if splits[row] == "query"]
    (tmp_path / "judged.csv").write_text("\n".join(pairs))
    result = adapt_files(wanted(tmp_path, bounds={}), tmp_path / "out", relevance=str(tmp_path / "judged.csv"))
    assert (result["fitted"]["pairs"], result["outcome"]) == (420, "passed")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["comparisons"][0]["measurements"]["cross_test_recall_at_1"]["n"] == 120
    with pytest.raises(DataError, match="have no column label"):
        adapt_files(wanted(tmp_path), tmp_path / "out", relevance=None)


def test_files_that_do_not_fit_are_refused(made: Path, tmp_path: Path) -> None:
    vectors, _ = files.read(made / "new.npz")
    np.savez(tmp_path / "few.npz", ids=vectors.ids[:-1], vectors=vectors.vectors[:-1])
    with pytest.raises(SpecError, match="1 ids are in one of them alone"):
        adapt_files(wanted(made, new=str(tmp_path / "few.npz")), tmp_path / "out", relevance=None)
    np.savez(tmp_path / "odd.npz", ids=vectors.ids, vectors=vectors.vectors, label=vectors.payload["label"],
             split=np.full(600, "elsewhere"))  # fmt: skip
    with pytest.raises(DataError, match="split must be one of train, validation, query, gallery, got 'elsewhere'"):
        adapt_files(wanted(made, new=str(tmp_path / "odd.npz")), tmp_path / "out", relevance=None)


def test_a_held_adapter_of_files_ends_with_3(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"old": str(made / "old.npz"), "new": str(made / "new.npz"), "kinds": ["procrustes"]}
    document = {"wanted": {**asked, "bounds": {"retrieval_nfr": 0.0}}, "out": str(tmp_path / "o"), "relevance": None}
    monkeypatch.setattr(main, "_document", lambda: {**document, "quiet": False})
    assert main.main(["adapt"]) == 3
    printed = capsys.readouterr()
    assert "recall at 10, all embedded again:" in printed.out
    assert "stage=fit" in printed.err


def test_by_default_an_adapter_as_good_as_the_old_search_passes_and_one_that_loses_is_held(tmp_path: Path) -> None:
    defaults = {parameter.name: parameter.default for parameter in adapt.params}
    count, rng = 1500, np.random.default_rng(0)
    items = rng.normal(size=(count, 8))
    splits = np.array(["gallery"] * count + ["validation"] * 100 + ["query"] * count)
    queries = items + 0.7 * rng.normal(size=items.shape)
    old = np.concatenate([items, rng.normal(size=(100, 8)), queries])
    turn, verdicts = ortho_group.rvs(8, random_state=0), {}
    ids = np.array(
        [f"{split}{row:04d}" for split, rows in (("g", count), ("v", 100), ("q", count)) for row in range(rows)]
    )
    (tmp_path / "judged.csv").write_text("\n".join(f"q{row:04d},g{row:04d},1" for row in range(count)))
    for name, noise in (("equal", 0.05), ("worse", 0.4)):
        new = (old + noise * rng.normal(size=old.shape)) @ turn
        for model, vectors in (("old", old), ("new", new)):
            found = Vectors(ids=ids, vectors=vectors.astype(np.float32), payload={"split": splits})
            files.write(tmp_path / f"{model}.npz", found, Space.declared(model, 8))
        bounds = {"adapter_gain_recall_at_10": defaults["min_gain"]}
        asked = wanted(tmp_path, kinds=("procrustes",), bounds=bounds)
        result = adapt_files(asked, tmp_path / name, relevance=str(tmp_path / "judged.csv"))
        verdicts[name] = result["outcome"], result["metrics"]["adapter_gain_recall_at_10"]
    assert (verdicts["equal"][0], verdicts["worse"][0]) == ("passed", "held"), verdicts
    assert -0.02 <= verdicts["equal"][1]["lower"] < 0.0, "a bound of 0 would hold it"
    assert verdicts["worse"][1]["upper"] < 0.0
