"""Names of models that graceful uses itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from graceful import spec
from graceful.errors import SpecError
from graceful.lineage import Store, lease
from graceful.lineage.reference import Reference
from tests.support import mlflow_versions as versions

RESERVED = "must not begin with graceful-lock-, by which graceful names its locks in MLflow"


@pytest.mark.parametrize("changes", [{"model": "graceful-lock-wine"}, {"parents": ["graceful-lock-wine@champion"]}])
def test_names_of_locks_are_refused_in_a_spec(changes: dict[str, object]) -> None:
    with pytest.raises(SpecError, match=rf"^{next(iter(changes))}.*{RESERVED}"):
        spec.parse({**versions.spec("v1"), **changes})


@pytest.mark.parametrize("text", ["graceful-lock-wine", "graceful-lock-wine:3", "graceful-lock-wine@champion"])
def test_names_of_locks_are_refused_in_a_command(text: str) -> None:
    with pytest.raises(SpecError, match=f"^version {text}: {RESERVED}"):
        Reference.parse(text)


def test_names_of_locks_are_refused_by_whoever_writes(tmp_path: Path) -> None:
    registry = Store(None, tmp_path).registry
    with pytest.raises(SpecError, match=RESERVED), lease.writer(registry, "graceful-lock-wine"):
        raise AssertionError("it was given out")


def test_other_names_that_begin_with_graceful_are_not() -> None:
    assert spec.parse({**versions.spec("v1"), "model": "graceful-demo"}).model == "graceful-demo"
    assert Reference.parse("graceful-demo@champion").model == "graceful-demo"
