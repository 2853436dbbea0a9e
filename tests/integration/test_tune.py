"""`graceful tune` with real parts: Ray Tune, MLflow on sqlite, kill -9 in the middle, an error rate out of reach."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from graceful.errors import SpecError
from graceful.programs.tuning import program as tuning
from graceful.storage import Mirror, objects
from graceful.storage.server import client
from tests.support.s3_server import serving

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]
FAST: dict[str, Any] = {"num_workers": 0, "engine": {"kind": "torch"}, "epochs": 4, "batch_size": 32}
NETWORK = {"head": "cosine"}
TRIALS = 4


def graceful(*arguments: object, home: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "graceful.cli", *map(str, arguments)]
    environment = {**os.environ, "GRACEFUL_HOME": str(home), **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)


def written(folder: Path, name: str, **sections: Any) -> Path:
    document = {
        "model": "digits",
        "name": name,
        "task": {"kind": "digits", "network": NETWORK},
        "train": FAST,
        "evaluate": {"retrieval": False},
        "gate": {"constraints": [{"metric": "error_rate", "bound": 0.9, "against": "self"}]},
        **sections,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose registry holds digits v1, passed and champion."""
    folder = tmp_path_factory.mktemp("home")
    task = {"kind": "digits", "share": 0.5, "classes": 8, "network": NETWORK}
    done = graceful("refresh", written(folder, "v1", task=task), "-o", "json", home=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Address of an empty bucket on a real S3 server."""
    with serving():
        client().create_bucket(Bucket="searches")
        yield "s3://searches"


def finished(folder: Path) -> dict[str, int]:
    """Fits of trials that have finished -> when."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("fits/*/search-fit.json")}


def tune_section(**more: Any) -> dict[str, Any]:
    space = {"runs": [0, 1], "distillation": [0.1, 1.0], "displacement": [0.01, 0.1]}
    final = {"candidates": 1, "seeds": 2}
    return {"trials": TRIALS, "max_concurrent": 2, "tolerance": 1.0, "space": space, "final": final, **more}


def test_killed_search_loses_no_trial_and_repeats_none(home: Path) -> None:
    path = written(home, "v2", tune=tune_section())
    folder = home / "tunes" / "digits-v2"
    environment = {**os.environ, "GRACEFUL_HOME": str(home), "OMP_NUM_THREADS": "1"}
    from graceful import spec

    resolved = json.dumps(spec.load(path).dump())
    command = [sys.executable, "-m", "graceful.programs", "tune", "--output", "json"]
    with subprocess.Popen(
        command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as driver:
        assert driver.stdin is not None
        with driver.stdin as stream:
            stream.write(resolved)
        deadline = time.monotonic() + 900
        while len(finished(folder)) < 3 and driver.poll() is None:  # the reference run and two trials
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(driver.pid, signal.SIGKILL)
    before = finished(folder)
    assert driver.returncode == -signal.SIGKILL
    assert len(before) >= 3
    assert not (folder / "tune.json").exists()
    done = graceful("tune", path, "-o", "json", home=home)
    assert done.returncode in (0, 3), done.stderr
    assert "Traceback" not in done.stderr
    after = finished(folder)
    assert {name: after[name] for name in before} == before
    result = json.loads(done.stdout)
    assert result["trials"] == TRIALS
    assert len(after) == TRIALS + 1  # one reference run: no fit was made for nothing
    _check_mlflow(home, trials=TRIALS)
    _check_repeated(home, path, done.stdout)
    other = graceful("tune", path, "--set", "tune.space.runs=[2]", home=home)
    assert other.returncode == 2
    assert "begun with another tune" in other.stderr


def _check_mlflow(home: Path, *, trials: int) -> None:
    with sqlite3.connect(home / "mlflow.db") as database:
        tags: dict[str, dict[str, str]] = {}
        for run, key, value in database.execute("select run_uuid, key, value from tags"):
            tags.setdefault(run, {})[key] = value
        metrics = {key for (key,) in database.execute("select distinct key from latest_metrics")}
        status = dict(database.execute("select run_uuid, status from runs"))
    (parent,) = [run for run, mine in tags.items() if mine.get("graceful_kind") == "search"]
    children = [mine for mine in tags.values() if mine.get("graceful_kind") == "trial"]
    assert status[parent] == "FINISHED"
    assert [mine["mlflow.parentRunId"] for mine in children] == [parent] * trials
    assert len({mine["graceful_trial"] for mine in children}) == trials
    assert {"nfr", "error", "violation", "hypervolume"} <= metrics
    assert list((home / "artifacts").rglob(f"{parent}/artifacts/pareto.svg"))


def _check_repeated(home: Path, path: Path, printed: str) -> None:
    """A finished search prints its result again and trains nothing."""
    started = time.time_ns()
    again = graceful("tune", path, "-o", "json", home=home)
    assert again.stdout == printed
    assert all(at < started for at in finished(home / "tunes" / "digits-v2").values())


def test_error_rate_that_cannot_be_met_ends_with_3_and_the_closest_point(home: Path) -> None:
    section = tune_section(trials=2, max_concurrent=1, error=0.001, tolerance=0.0)
    path = written(home, "v3", tune=section)
    done = graceful("tune", path, "-o", "json", home=home)
    assert done.returncode == 3, done.stderr
    result = json.loads(done.stdout)
    assert result["outcome"] == "unmet"
    assert result["closest"]["violation"] > 0.0
    assert result["relax"][0].startswith("write tune.tolerance: ")
    shown = graceful("tune", path, home=home)
    assert shown.returncode == 3
    assert "the error rate is not met; closest is trial" in shown.stdout


def test_front_is_a_set_of_specs(home: Path) -> None:
    path = written(home, "v4", tune=tune_section(trials=3, max_concurrent=1, objectives="front"))
    done = graceful("tune", path, "-o", "json", home=home)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["outcome"] == "front"
    assert all(row["retrieval"] > 0.0 for row in result["front"])
    from graceful import spec

    for row in result["front"]:
        found = spec.load(home / "tunes" / "digits-v4" / f"spec-{row['number']}.yaml")
        assert found.compatibility.losses


def test_thresholds_are_calibrated_for_verification(home: Path) -> None:
    path = written(home, "v5", tune=tune_section(trials=2, max_concurrent=1, far=0.01))
    done = graceful("tune", path, "-o", "json", home=home)
    assert done.returncode in (0, 2, 3), done.stderr
    if done.returncode == 2:  # the halves of validation are small
        assert "ids are left" in done.stderr
    else:
        assert json.loads(done.stdout)["asked"]["far"] == 0.01


def test_no_predecessor_is_one_line(home: Path) -> None:
    done = graceful("tune", written(home, "v9", model="lonely", tune=tune_section()), home=home)
    assert done.returncode == 2
    assert "lonely has no champion yet" in done.stderr


def test_a_search_goes_on_where_its_machine_was_lost(home: Path, bucket: str) -> None:
    path = written(home, "v7", tune=tune_section(trials=2, max_concurrent=1))
    folder, there = home / "tunes" / "digits-v7", f"{bucket}/team/tunes/digits-v7"

    def copied(name: str) -> set[str]:
        uris = [stored.uri for stored in objects.list_objects(there) if stored.uri.endswith(f"/{name}")]
        return {uri.removeprefix(f"{there}/fits/").partition("/")[0] for uri in uris}

    def fits(name: str) -> set[str]:
        return {path.parent.name for path in folder.glob(f"fits/*/{name}")}

    storage = {"GRACEFUL_STORAGE": f"{bucket}/team"}
    done = graceful("tune", path, "-o", "json", home=home, env=storage)
    assert done.returncode in (0, 3), done.stderr
    assert json.loads(done.stdout)["folder"] == there
    before = copied("search-fit.json")
    assert before == copied("search-right.npy") == fits("search-fit.json")
    assert copied("model.safetensors") <= fits("held_back-fit.json"), "a trial leaves no weights"
    shutil.rmtree(home / "tunes")
    again = graceful("tune", path, "--trials", "3", "-o", "json", home=home, env=storage)
    assert again.returncode in (0, 3), again.stderr
    assert json.loads(again.stdout)["trials"] == 3
    after = copied("search-fit.json")
    assert before < after
    assert len(after) == len(before) + 1
    assert fits("spec.json") - fits("held_back-fit.json") == after - before, "only the third was trained"


@pytest.mark.parametrize(
    ("here", "there", "left"),
    [
        ("1\n2\n", "1\n", "1\n2\n"),
        ("1\n", "1\n2\n", "1\n2\n"),
        ("1\n2", "1\n2\n3\n", "1\n2\n3\n"),
        ("", "1\n", "1\n"),
        ("1\n2\n", "1\n3\n", None),
    ],
    ids=["longer here", "longer there", "torn here", "empty here", "two ways"],
)
def test_of_two_journals_the_longer_counts_and_two_ways_are_refused(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, here: str, there: str, left: str | None
) -> None:
    monkeypatch.setenv("GRACEFUL_STORAGE", f"{bucket}/{tmp_path.name}")
    mirror, folder = Mirror.of(tmp_path), tmp_path / "tunes" / "digits-v9"
    journal = folder / "journal-0.jsonl"
    folder.mkdir(parents=True)
    journal.write_text(there)
    mirror.save(folder)
    journal.write_text(here)
    if left is None:
        with pytest.raises(SpecError, match="went on from the same search differently"):
            tuning._restore(mirror, folder)
        assert journal.read_text() == here
        return
    tuning._restore(mirror, folder)
    assert journal.read_text() == left
