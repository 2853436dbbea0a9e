"""A search of architectures on real parts: the registry's gallery model, kill -9, a lost actor of Ray, the winner."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from graceful import spec
from graceful.programs.architectures import program, pruning
from graceful.programs.refresh import refresh
from graceful.programs.runs.run import Run
from graceful.spec import RefreshSpec

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),  # its own use of SQLAlchemy
]
JOBS = Path(__file__).parents[2] / "jobs"
SMALL = ("train.num_workers=0", "train.engine={kind: torch}", "train.epochs=1", "train.batch_size=32")
DATA = ("task.fonts=0.1", "task.classes=12", "evaluate.bootstrap=100")
EVALUATIONS = 24


def query(*overrides: str) -> RefreshSpec:
    section = ("architectures.population=4", f"architectures.evaluations={EVALUATIONS}", "architectures.epochs=1")
    return spec.load(JOBS / "hvs/search.yaml", [*SMALL, *DATA, *section, *overrides])


def lines(folder: Path) -> list[dict[str, Any]]:
    journals = list(folder.glob("evaluations-*.jsonl"))
    text = journals[0].read_text(encoding="utf-8") if journals else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


@contextmanager
def driver(document: RefreshSpec) -> Iterator[subprocess.Popen[str]]:
    """Start a search as the command line does, in a process of its own."""
    command = [sys.executable, "-m", "graceful.programs", "search-architecture", "--quiet", "--output", "json"]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(document.dump()))
        process.stdin.close()
        process.stdin = None
        yield process


def killed_in_the_middle(document: RefreshSpec, folder: Path) -> list[dict[str, Any]]:
    """Kill a search after a few evaluations, and return them."""
    with driver(document) as process:
        while len(lines(folder)) < 3 and process.poll() is None:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    return lines(folder)


def finished_without_its_actors(document: RefreshSpec, folder: Path, home: Path) -> tuple[dict[str, Any], int]:
    """Kill the actors of a search once it has gone on; return its result and how many there were."""
    known, ended = len(lines(folder)), 0
    with driver(document) as process:
        while not ended and process.poll() is None:
            time.sleep(0.02)
            if len(lines(folder)) > known:
                ended = end_actors(home)
        printed, _ = process.communicate()
    assert process.returncode == 0
    return json.loads(printed), ended


def end_actors(home: Path) -> int:
    """Kill the actors of this test's Ray, which know its home, and return how many there were."""
    ended = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title, variables = ((process / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:
            continue  # it has ended, or is not ours
        if title.startswith(b"ray::Holder") and f"GRACEFUL_HOME={home}".encode() in variables:
            os.kill(int(process.name), signal.SIGKILL)
            ended += 1
    return ended


def test_a_search_survives_kill_9_and_the_loss_of_an_actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path))
    gate = "gate.constraints=[{metric: error_rate, bound: 1.0}]"
    gallery = Run.of(spec.load(JOBS / "glyphs/v1.yaml", [*SMALL, *DATA, gate]), home=tmp_path)
    assert refresh(gallery)[0].outcome == "passed"
    folder = program.run_of(query()).folder
    before = killed_in_the_middle(query(), folder)
    assert 3 <= len(before) < EVALUATIONS

    document, ended = finished_without_its_actors(query("architectures.actors=1"), folder, tmp_path)
    after = lines(folder)
    assert ended == 1
    assert after[: len(before)] == before
    assert len({row["digest"] for row in after}) == len(after)
    assert (document["evaluations"], document["failed"]) == (EVALUATIONS, [])
    assert (document["gallery"], document["best"]["macs"] <= 60_000) == ("glyphs-v1", True)
    winner = spec.load(folder / program.SPEC)
    assert (winner.run_id, winner.architectures) == ("glyphs-edge-edge-v2", None)
    a_pruned_network_becomes_a_version(tmp_path)


def a_pruned_network_becomes_a_version(home: Path) -> None:
    """Prune for the same gallery model, with a kill -9 between the two trainings, and refresh a capacity."""
    pruned = spec.load(JOBS / "hvs/prune.yaml", [*SMALL, *DATA, "architectures.epochs=1", "train.warmup=0"])
    folder = program.run_of(pruned).folder
    first = folder / pruning.WHOLE / "training.json"
    with driver(pruned) as process:
        while not first.exists() and process.poll() is None:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    before = first.read_bytes()
    with driver(pruned) as process:
        printed, _ = process.communicate()
    assert process.returncode == 0
    assert first.read_bytes() == before
    front = json.loads(printed)["front"]
    assert [row["capacity"] for row in front] == [0.25, 0.5, 1.0]
    run = Run.of(spec.load(folder / front[0]["spec"], ["gate.constraints=[]"]), home=home)
    refreshed, report = refresh(run)
    assert (refreshed.run_id, refreshed.outcome) == ("glyphs-edge-edge-v3-25", "passed")
    (gallery,) = report.pairs
    assert gallery.measurements["pair_map"].value is not None
