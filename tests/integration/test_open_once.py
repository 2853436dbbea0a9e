"""A refresh opens each bundle once and copies each file to the bucket once, counted here and at the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from graceful import spec
from graceful.models import bundle
from graceful.programs.refresh import matrix_of, refresh
from graceful.programs.runs.run import Run
from graceful.storage.server import client
from tests.support.s3_server import BadRoad, environment, serving

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore"),  # MLflow and what it imports
]
RECIPE = {"num_workers": 0, "engine": {"kind": "torch"}, "epochs": 2, "batch_size": 64}
GATE = {"constraints": [{"metric": "error_rate", "bound": 1.0, "against": "self"}]}
ALL_READINGS = {
    "against": "all",
    "losses": [{"kind": "focal_distillation"}, {"kind": "influence"}],
    "reference": {"runs": 1},
    "interpolation": 0.2,
}
"""Against caches, heads, a reference run, and from and with the weights of the latest predecessor."""


@pytest.fixture(scope="module")
def road() -> Iterator[BadRoad]:
    with serving() as endpoint:
        client().create_bucket(Bucket="once")
        with (
            BadRoad(endpoint) as road,
            environment({"AWS_ENDPOINT_URL": road.uri, "GRACEFUL_STORAGE": "s3://once/team"}),
        ):
            yield road


def run_of(home: Path, name: str, **sections: Any) -> Run:
    train = {**RECIPE, **sections.pop("train", {})}
    document = {"model": "digits", "name": name, "task": {"kind": "digits"}, "gate": GATE, "home": str(home)}
    return Run.of(spec.parse({**document, "train": train, **sections}))


def test_a_refresh_opens_each_bundle_once_and_uploads_each_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, road: BadRoad
) -> None:
    assert refresh(run_of(tmp_path, "v1"))[0].outcome == "passed"
    opened: Counter[str] = Counter()
    load = bundle.load

    def counted(folder: Path, **options: Any) -> Any:
        version = load(folder, **options)
        if Path(folder).is_relative_to(tmp_path):  # not the one of the rehearsal, which is gone
            opened[version.name] += 1
        return version

    monkeypatch.setattr(bundle, "load", counted)
    before = len(road.seen)
    run = run_of(tmp_path, "v2", train={"start": "latest"}, compatibility=ALL_READINGS)
    assert refresh(run)[0].outcome == "passed"
    (reference,) = (path.name for path in (tmp_path / "references").iterdir() if path.is_dir())
    assert opened == dict.fromkeys(["v1", "v2", reference], 1)
    uploads = Counter(seen.partition("?")[0] for seen in road.seen[before:] if seen.startswith("PUT "))
    assert any(address.endswith("/runs/digits-v2/spec.json") for address in uploads)
    grows = "metrics.jsonl"  # copied at every checkpoint
    assert {address for address, count in uploads.items() if count > 1 and not address.endswith(grows)} == set()
    opened.clear()
    again = run_of(tmp_path, "v2", train={"start": "latest"}, compatibility=ALL_READINGS)
    assert matrix_of(again)["versions"] == ["v1", "v2"]
    assert opened == dict.fromkeys(["v1", "v2", reference], 1)
