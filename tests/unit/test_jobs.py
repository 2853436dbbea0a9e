"""Every spec under jobs/ is valid, and the guide shows the example task as it is."""

from pathlib import Path

import pytest

from graceful import spec

ROOT = Path(__file__).parents[2]
JOBS = sorted((ROOT / "jobs").rglob("*.yaml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_job_is_valid_and_round_trips(path: Path) -> None:
    loaded = spec.load(path)
    assert spec.parse(loaded.dump(), where="copy") == loaded
    assert loaded.gate.constraints


def test_versions_of_the_demo_grow_in_data_classes_and_network() -> None:
    v1, v2, v3 = (spec.load(ROOT / "jobs" / "glyphs" / f"v{number}.yaml").task for number in (1, 2, 3))
    assert v1.fonts < v2.fonts < v3.fonts == 1.0
    assert v1.classes < v2.classes
    assert v3.classes is None
    assert [task.network.size for task in (v1, v2, v3)] == ["xs", "s2", "m"]


def test_the_guide_shows_the_example_task_word_for_word() -> None:
    source = (ROOT / "jobs" / "wine" / "task.py").read_text()
    assert source.count("\n") <= 40
    assert f"```python\n{source}```" in (ROOT / "docs" / "guides" / "task.md").read_text()
