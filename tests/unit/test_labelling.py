"""`graceful label-next` on files: labels are asked for until the gate could decide; searches; what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from graceful.errors import DataError, SpecError
from graceful.index import Index, Space, Vectors, files
from graceful.metrics.predictions import Predictions
from graceful.programs import __main__ as main
from graceful.programs.outputs import recorded_predictions
from graceful.programs.searches.labelling import Asked, label_next
from graceful.views.labelling import screen

N, BOUND = 1000, 0.03


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Two versions' answers on samples whose labels only the test knows."""
    folder, rng = tmp_path_factory.mktemp("answers"), np.random.default_rng(0)
    labels = {f"s{row:04d}": "cat" for row in range(N)}
    right = {"old": rng.random(N) < 0.85}
    right["new"] = np.where(rng.random(N) < 0.6, right["old"], rng.random(N) < 0.9)
    for name, correct in right.items():
        sure = np.where(correct, rng.uniform(0.6, 1.0, N), rng.uniform(0.3, 0.8, N))
        rows = [f"s{row:04d},{'cat' if correct[row] else 'dog'},{sure[row]:.3f}" for row in range(N)]
        (folder / f"{name}.csv").write_text("\n".join(["id,answer,confidence", *rows]))
    return folder, labels


def asked(folder: Path, **changes: object) -> Asked:
    return replace(Asked(old=str(folder / "old.csv"), new=str(folder / "new.csv"), bound=BOUND), **changes)  # type: ignore[arg-type]


def test_labels_are_asked_for_until_the_gate_could_decide(truth: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    folder, labels = truth
    first = label_next(asked(folder))
    predicted = first.document()["labels"]
    assert first.standing.state == "open"
    known: list[str] = []
    found = first
    while found.standing.state == "open":
        known += [f"{row['id']},{labels[row['id']]}" for row in found.rows[:5]]
        (tmp_path / "labels.csv").write_text("\n".join(known))
        found = label_next(asked(folder, labels=str(tmp_path / "labels.csv")))
    assert predicted["at_least"] <= len(known) <= predicted["at_most"]
    assert len(known) < 0.9 * first.standing.disagree < 0.2 * N
    rate = found.standing.flips / N
    assert (found.standing.state == "held") == (rate > found.standing.most / N)
    assert found.document()["labels"] is None
    console = Console(width=160)
    with console.capture() as printed:
        console.print(screen(first))
        console.print(screen(found))
    assert "more labels decide it" in printed.get()
    assert f"decided: {found.standing.state}" in printed.get()


def test_recorded_predictions_and_all_disagreements_in_a_file(
    truth: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, _ = truth
    rows = [line.split(",") for line in (folder / "new.csv").read_text().splitlines()[1:]]
    ids, answers = (np.array([row[column] for row in rows]) for column in (0, 1))
    sure = np.array([float(row[2]) for row in rows])
    predictions = Predictions(ids=ids, labels=answers, predicted=answers, confidence=sure)
    recorded_predictions.save(tmp_path / "predictions.npz", predictions)
    found = label_next(asked(folder, new=str(tmp_path / "predictions.npz"), out=str(tmp_path / "next.csv"), count=3))
    assert found.rows == label_next(asked(folder, count=3)).rows
    assert len((tmp_path / "next.csv").read_text().splitlines()) == found.standing.disagree + 1


def test_first_results_of_two_searches_are_judged_pair_by_pair(tmp_path: Path) -> None:
    rng, spaces = np.random.default_rng(1), {}
    for name in ("old", "new"):
        spaces[name] = Space.declared(name, 6)
        items = Vectors(ids=np.array([f"i{row}" for row in range(50)]), vectors=rng.normal(size=(50, 6)).astype("f4"))
        queries = Vectors(ids=np.array([f"q{row}" for row in range(40)]), vectors=rng.normal(size=(40, 6)).astype("f4"))
        Index.create(tmp_path / name, items, spaces[name])
        files.write(tmp_path / f"{name}.npz", queries, spaces[name])
    given = tuple(str(tmp_path / f"{name}.npz") for name in spaces)
    search = Asked(old=str(tmp_path / "old"), new=str(tmp_path / "new"), bound=0.5, queries=given, count=100)
    found = label_next(search)
    assert found.kind == "retrieval_nfr"
    lost, kept, half = found.rows[:3]
    pairs = [(lost["id"], lost["old"], 1), (lost["id"], lost["new"], 0), (kept["id"], kept["new"], 1)]
    pairs += [(half["id"], half["old"], 1)]  # whether the new result is right is not known
    (tmp_path / "judged.csv").write_text("\n".join(f"{query},{item},{grade}" for query, item, grade in pairs))
    again = label_next(replace(search, labels=str(tmp_path / "judged.csv")))
    assert (again.standing.flips, again.standing.no_flips) == (1, 1)
    with pytest.raises(SpecError, match="indices need them"):
        label_next(replace(search, queries=()))


def test_what_cannot_be_compared_is_one_line(truth: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    folder, _ = truth
    for text, message in (
        ("s1,cat,often", "the confidence of s1 must be a number"),
        ("s1,cat,7", r"the confidence of s1 must be in \[0, 1\], got 7"),
        ("s1,cat\ns1,dog", "id s1 occurs twice"),
        ("s1", "row 1 must have 2 or 3 columns, got 1"),
        ("other,cat", "share no id"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            label_next(asked(folder, new=str(tmp_path / "bad.csv")))
    with pytest.raises(SpecError, match="give two files of predictions, or two indices"):
        label_next(asked(folder, new=str(tmp_path)))
    with pytest.raises(SpecError, match=r"must be a \.csv or \.tsv file"):
        label_next(asked(folder, new=str(folder / "new.txt")))


def test_too_few_samples_are_said(
    truth: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = truth
    document = {"old": str(folder / "old.csv"), "new": str(folder / "new.csv"), "bound": 0.001}
    monkeypatch.setattr(main, "_document", lambda: document)
    assert main.main(["label-next", "--output", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["samples_needed"], found["labels"]) == ("too few", 3838, None)
