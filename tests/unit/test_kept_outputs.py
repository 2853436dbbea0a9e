"""Answers that are kept between evaluations: when versions are run again, and what a damaged or forged file changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from graceful import tasks
from graceful.chain import Predecessor
from graceful.programs.evaluation.evaluate import evaluate
from graceful.programs.outputs import kept_outputs, model_outputs
from graceful.programs.outputs.kept_outputs import KeptOutputs
from graceful.report import Report
from graceful.storage import Mirror
from tests.unit.test_program_stages import constant, parse


@pytest.fixture
def kept(tmp_path: Path) -> KeptOutputs:
    return KeptOutputs.of(tmp_path, Mirror.NONE)


@pytest.fixture
def whole_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of versions that ran on all samples of a split."""
    names: list[str] = []
    real = model_outputs.answers_on_split

    def counted(version: Any, *rest: Any, positions: Any = None, **options: Any) -> Any:
        names.extend([version.name] if positions is None else [])
        return real(version, *rest, positions=positions, **options)

    monkeypatch.setattr(model_outputs, "answers_on_split", counted)
    return names


def version(name: str, **changes: Any) -> Predecessor:
    torch.manual_seed(0)
    return constant(name, int(name[1:]) % 3, **changes)


def report(kept: KeptOutputs | None, *names: str, **changes: Any) -> Report:
    new, *chain = (version(name, **changes) for name in names)
    return evaluate(parse(new.name), new, chain, kept=kept).report


def test_versions_that_were_measured_before_are_not_run_again(kept: KeptOutputs, whole_runs: list[str]) -> None:
    report(kept, "v2", "v1")
    assert whole_runs == ["v2", "v1"]
    again = report(kept, "v3", "v2", "v1")
    assert whole_runs == ["v2", "v1", "v3"]
    assert again == report(None, "v3", "v2", "v1")


def test_another_transform_or_another_version_of_the_same_name_is_run(kept: KeptOutputs, whole_runs: list[str]) -> None:
    report(kept, "v1")
    report(kept, "v1", transform_digest="another")
    evaluate(parse("v1"), replace(version("v1"), digest="another"), [], kept=kept)
    assert whole_runs == ["v1"] * 3


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def forged(path: Path) -> None:
    arrays = load_file(path)
    arrays["codes"] = (arrays["codes"] + 1) % 3
    save_file(arrays, path, metadata={"sha256": kept_outputs._digest(arrays)})


def of_another_kind(path: Path) -> None:
    arrays = load_file(path)
    arrays["codes"] = arrays["codes"].astype(np.float32)
    save_file(arrays, path, metadata={"sha256": kept_outputs._digest(arrays)})


@pytest.mark.parametrize("damage", [truncated, flipped, forged, of_another_kind, lambda path: path.write_bytes(b"")])
def test_a_damaged_or_forged_file_is_no_evidence_and_is_written_again(
    damage: Any, kept: KeptOutputs, whole_runs: list[str]
) -> None:
    before = report(kept, "v2", "v1")
    files = sorted(kept.folder.iterdir())
    whole = [path.read_bytes() for path in files]
    for path in files:
        damage(path)
    assert report(kept, "v2", "v1") == before
    assert whole_runs == ["v2", "v1"] * 2
    assert [path.read_bytes() for path in files] == whole


def test_answers_without_a_class_and_of_unknown_classes_are_kept_as_they_are(kept: KeptOutputs) -> None:
    samples = tasks.build(parse("v1").task).samples("test")
    rows = len(samples)
    said = kept_outputs.SplitAnswers(
        codes=np.full(rows, -1, np.int32),
        confidence=np.zeros(rows),
        label_confidence=np.full(rows, np.nan),
        embeddings=np.full((rows, 2), np.inf, np.float32),
    )
    path = kept.path(version("v1"), samples, encoder="default", embeddings=True)
    kept.keep(path, said)
    read = kept.read(path, rows=rows)
    assert read is not None
    assert read.agrees_with(said)
    assert kept.read(path, rows=rows + 1) is None
