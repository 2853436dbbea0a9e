"""Checkpoints in a bucket that are no longer needed, decided from a listing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from graceful.programs.housekeeping import sweep
from graceful.storage import StoredObject

ROOT = "s3://b/team/runs"
NOW = datetime(2026, 11, 22, 13, 0, tzinfo=UTC)
BEFORE = NOW - timedelta(days=1)
OLD, NEW = BEFORE - timedelta(seconds=1), BEFORE


def stored(key: str, modified: datetime | None = OLD) -> StoredObject:
    return StoredObject(bucket="b", key=f"team/runs/{key}", size=3, etag="e", modified=modified)


def judged(*listing: StoredObject, **kept: frozenset[str]) -> dict[str, int]:
    known = {folder.replace("__", "/"): names for folder, names in kept.items()}
    found = sweep.orphans(listing, root=ROOT, listed_checkpoints=known, before=BEFORE)
    return {one.uri.removeprefix(f"{ROOT}/"): len(one.objects) for one in found}


def test_a_finished_run_needs_no_checkpoints_whatever_their_age() -> None:
    listing = [
        stored("a/result.json"),
        stored("a/report.json"),
        stored("a/model/weights.bin"),
        stored("a/ray/a/step-000000010/w.pt", NEW),
        stored("a/ray/a/checkpoint_manager_snapshot.json", NEW),
        stored("a/checkpoints/step-000000010/w.pt", NEW),
        stored("a/rayon/step-000000010/w.pt"),
    ]
    assert judged(*listing, a__ray__a=frozenset({"step-000000010"})) == {"a/ray": 2, "a/checkpoints": 1}


def test_of_another_run_only_old_checkpoints_go_that_its_snapshot_does_not_list() -> None:
    listing = [
        stored("a/spec.json"),
        stored("a/ray/a/checkpoint_manager_snapshot.json"),
        stored("a/ray/a/step-000000010/w.pt"),
        stored("a/ray/a/step-000000010/deep/w.pt"),
        stored("a/ray/a/step-000000020/w.pt"),
        stored("a/ray/a/step-000000030/w.pt"),
        stored("a/ray/a/step-000000030/x.pt", NEW),
        stored("a/ray/a/step-000000040/w.pt", None),
        stored("a/ray/a/_metadata/step-000000050/w.pt"),
        stored("a/ray/a/steps/w.pt"),
        stored("a/ray/a/step-000000060"),
        stored("a/checkpoints/step-000000010/deep/w.pt"),
        stored("a/trace/step-000000010/deep/w.pt"),
    ]
    assert judged(*listing, a__ray__a=frozenset({"step-000000020"})) == {"a/ray/a/step-000000010": 2}


def test_without_a_readable_snapshot_everything_stays() -> None:
    listing = [stored("a/ray/a/step-000000010/w.pt"), stored("b/ray/b/step-000000010/w.pt")]
    assert judged(*listing, b__ray__b=frozenset()) == {"b/ray/b/step-000000010": 1}
    assert judged(*listing) == {}


def test_a_result_elsewhere_finishes_no_run() -> None:
    listing = [stored("a/model/result.json"), stored("ab/result.json"), stored("a/ray/a/step-000000010/w.pt")]
    assert judged(*listing) == {}


def test_every_checkpoint_that_a_snapshot_names_counts_as_listed() -> None:
    def result(step: int) -> dict[str, object]:
        return {"version": 0, "checkpoint_dir_name": f"step-{step:09d}", "metrics": {}}

    document = {
        "checkpoint_results": [result(10), result(20)],
        "latest_checkpoint_result": result(30),
        "pending_training_results": [result(40)],
    }
    names = {f"step-{step:09d}" for step in (10, 20, 30, 40)}
    assert sweep.listed_in(json.dumps(document).encode()) == names
    document["latest_checkpoint_result"] = None
    assert sweep.listed_in(json.dumps(document).encode()) == names - {"step-000000030"}


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b"{}", b"null", b'{"checkpoint_results": [1]}', b"\xff"])
def test_a_snapshot_that_cannot_be_read_says_nothing(damaged: bytes) -> None:
    assert sweep.listed_in(damaged) is None
