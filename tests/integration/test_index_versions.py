"""An index follows registered versions: built by the first one, backfilled by the second one as a job."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration


def spec(folder: Path, name: str) -> Path:
    """A small version of the digits."""
    document = {
        "model": "digits",
        "name": name,
        "task": {"kind": "digits", "share": 0.5, "network": {"head": "cosine"}},
        "train": {"num_workers": 0, "engine": {"kind": "torch"}, "epochs": 2, "batch_size": 32},
        "evaluate": {"retrieval": False},
        "gate": {"constraints": [{"metric": "error_rate", "bound": 0.95, "against": "self"}]},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_a_job_embeds_with_the_version_that_it_is_given(
    tmp_path: Path, command_line: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    def run(*arguments: str | Path) -> Any:
        done = command_line(*arguments, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    for name in ("v1", "v2"):
        run("refresh", spec(tmp_path, name))
    built = run("index", "build", "gallery", "--version", "digits:v1")
    assert built["counts"] == {"digits-v1": built["vectors"]}
    sent = run("backfill", "run", "gallery", "--version", "digits:v2", "--on", "local", "--yes")
    ended = run("status", sent["run_id"], "--on", "local", "--wait")
    assert (ended["phase"], ended["exit_code"]) == ("SUCCEEDED", 0)
    now = run("backfill", "status", "gallery")
    assert (now["state"], now["serving"], now["done"]) == ("moved", "digits-v2", built["vectors"])
    found = run("index", "query", "gallery", "--version", "digits:v2", "--split", "gallery", "-k", "1")
    assert {hit["space"] for item in found["queries"] for hit in item["hits"]} == {"digits-v2"}
    assert found["queries"][0]["hits"][0]["score"] == pytest.approx(1.0, abs=1e-3)
