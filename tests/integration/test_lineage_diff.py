"""`graceful lineage` and `graceful diff` over a real registry: any two versions, also of two branches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from graceful import cli
from graceful.errors import IntegrityError, SpecError
from graceful.lineage import LineageRecord, Store
from graceful.programs.versions import diff
from graceful.views import difference
from tests.support import mlflow_story
from tests.support import mlflow_versions as versions

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),  # its own use of SQLAlchemy
]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, LineageRecord]]:
    home = tmp_path_factory.mktemp("told") / "home"
    home.mkdir()
    return home, mlflow_story.tell(versions.local_store(home), home.parent / "bundles")


@pytest.fixture
def store(told: tuple[Path, dict[str, LineageRecord]]) -> Store:
    return versions.local_store(told[0])


def test_flips_between_any_two_versions(store: Store) -> None:
    found = diff.difference(store, "glyphs:1", "glyphs@champion")
    assert (found.old.name, found.new.name) == ("v1", "v4")
    assert found.notes == ()
    negative, positive = found.flips["negative_flip_rate"], found.flips["positive_flip_rate"]
    assert (negative.count, positive.count, negative.n) == (0, 20, 1000)
    assert {flip.id for flip in found.fixed} == {f"test-{row:04d}" for row in (*range(8), *range(48, 60))}
    assert all(flip.old != flip.label == flip.new for flip in found.fixed)
    assert found.flips["error_rate_change"].value == pytest.approx(-0.02)


def test_branches_compare_like_versions_of_one_model(store: Store) -> None:
    found = diff.difference(store, "glyphs:v4", "glyphs-edge")
    assert found.flips["negative_flip_rate"].count == len(found.broken) == 25
    assert difference.titles(found) == ("glyphs v4", "glyphs-edge edge-v1")
    assert found.spec == {"model": ("glyphs", "glyphs-edge")}
    document = json.loads(json.dumps(found.document()))
    assert document["broken"][0].keys() == {"id", "label", "old", "new", "confidence", "group"}
    text = difference.page(found, {"test-0005": mlflow_story.thumbnail(5)})
    assert "25 broken: right before, wrong now" in text
    assert text.count('<img src="data:image/png;base64,') == 1


def test_unknown_version_is_one_line_with_what_there_is(store: Store) -> None:
    with pytest.raises(SpecError, match=r"no version glyphs:9; there are 4 \(v4 @champion\)"):
        diff.difference(store, "glyphs:1", "glyphs:9")


def test_altered_predictions_are_refused(told: tuple[Path, dict[str, LineageRecord]], tmp_path: Path) -> None:
    store = versions.copied_store(told[0], tmp_path / "home")
    run = store.registry.client.get_run(told[1]["v1"].run_id)
    path = Path(run.info.artifact_uri.removeprefix("file://")) / "lineage" / "predictions.npz"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(IntegrityError, match=r"glyphs v1 .*predictions.npz: SHA-256 must be"):
        diff.difference(store, "glyphs:1", "glyphs:2")


def test_versions_of_before_predictions_were_kept_compare_by_their_reports(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diff.recorded_predictions, "FILE", "none.npz")
    found = diff.difference(store, "glyphs:2", "glyphs:4")
    assert found.flips["negative_flip_rate"].value == 0.008
    assert found.broken == ()
    assert "v2: its predictions were not recorded" in found.notes[0]


def test_commands_print_and_write(
    told: tuple[Path, dict[str, LineageRecord]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    home = ["--home", str(told[0])]
    assert cli.main(["lineage", "glyphs", *home, "--draw", str(tmp_path / "family.png")]) == 0
    shown = capfd.readouterr().out
    assert "├─┴─╯" in shown
    assert "glyphs-edge edge-v1 (1) passed; NFR 1.10% of 2.00%: passed vs v2" in shown
    with Image.open(tmp_path / "family.png") as image:
        assert image.width == 1400
    assert cli.main(["lineage", "glyphs", *home, "--last", "2", "-o", "json", "--draw", str(tmp_path / "a.html")]) == 0
    assert [entry["name"] for entry in json.loads(capfd.readouterr().out)] == ["v3", "v4"]
    assert (tmp_path / "a.html").read_text().count("<svg") == 1
    assert cli.main(["lineage", "glyphs", *home, "--draw", "a.gif"]) == 2
    assert "must end in one of .svg, .png, .html, .txt" in capfd.readouterr().err
    page = tmp_path / "flips.html"
    assert cli.main(["diff", "glyphs:1", "glyphs:3", *home, "--html", str(page), "-o", "json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["flips"]["negative_flip_rate"]["count"] == len(found["broken"]) == 60
    assert "60 broken" in page.read_text()
