"""Eight writers at once, every request of which goes wrong once; the benchmark `lineage_faults` takes sixty-four."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import mlflow_versions as versions
from tests.support.registry_faults import Fault, run_writers

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),  # its own use of SQLAlchemy
]

WRITERS = 8


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with versions.served(tmp_path_factory.mktemp("server")) as uri:
        yield uri


@pytest.mark.parametrize("fault", [Fault.ANSWER_LOST, Fault.CLIENT_DIES], ids=lambda fault: fault.name)
def test_every_version_edge_and_event_is_there_once(
    uri: str, tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    found = run_writers(uri, tmp_path, fault, WRITERS, model=f"writers-{fault.name.lower().replace('_', '-')}")
    assert found.failures == []
    assert found.injected >= WRITERS
    assert found.good, found.row()
    assert found.promoted
