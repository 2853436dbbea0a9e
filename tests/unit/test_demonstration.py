"""`graceful demo`: which refreshes it starts, and what ends it. tests/integration runs refreshes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graceful.cli import demonstration, programs
from graceful.errors import EXIT_HELD, EXIT_PASSED, EXIT_TRAINING, InfrastructureError


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(programs, "start", lambda program, **options: calls.append(_name(program, options)) or 0)
    return calls


def _name(program: str, options: dict[str, Any]) -> str:
    return (
        f"{program} {options['resolved'].run_id}" if "resolved" in options else f"{program} {options['arguments'][0]}"
    )


def test_three_versions_then_their_lineage(
    started: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demonstration.run(home=tmp_path, quiet=False, verbose=0) == EXIT_PASSED
    assert started == ["refresh glyphs-v1", "refresh glyphs-v2", "refresh glyphs-v3", "lineage glyphs"]
    assert f"{tmp_path}/runs/glyphs-v3/report.html" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "ends_with", "refreshes"), [(EXIT_HELD, EXIT_PASSED, 3), (EXIT_TRAINING, EXIT_TRAINING, 1)]
)
def test_a_held_version_is_a_result_and_a_failure_ends_the_demo(
    code: int, ends_with: int, refreshes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = []
    monkeypatch.setattr(
        programs, "start", lambda program, **_: codes.append(program) or (code if program == "refresh" else EXIT_PASSED)
    )
    assert demonstration.run(home=tmp_path, quiet=False, verbose=0) == ends_with
    assert codes.count("refresh") == refreshes


def test_an_installation_without_the_specs_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstration, "SPECS", tmp_path)
    with pytest.raises(InfrastructureError, match=r"graceful refresh jobs/glyphs/v1\.yaml"):
        demonstration.run(home=tmp_path, quiet=False, verbose=0)
