"""What people see: MLflow's own pages and the report in a real browser, over sqlite and over PostgreSQL."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from graceful.lineage import LineageRecord, Store
from tests.support import chromium, mlflow_server, mlflow_story, postgres_server
from tests.support.chromium import Page

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(chromium.executable() is None, reason="no chromium on the PATH"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),  # its own use of SQLAlchemy
]
MODE = "?workflowType=machine_learning"
PICTURES = "[...document.images].filter(image => image.src.includes('get-artifact') && image.naturalWidth > 0)"
LINKS = "[...document.querySelectorAll('a')].map(link => link.href)"


@dataclass(frozen=True, kw_only=True)
class Site:
    """A served registry with a story in it."""

    uri: str
    store: Store
    story: dict[str, LineageRecord]
    page: Page
    shots: Path

    def open(self, route: str) -> Page:
        self.page.open(f"{self.uri}/#{route}{MODE}")
        return self.page

    def run(self, name: str) -> str:
        """Route of the run that made a version."""
        run = self.store.registry.client.get_run(self.story[name].run_id)
        return f"/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    if request.param == "sqlite":
        yield from served(folder / "mlflow.db", folder)
    else:
        why = postgres_server.missing()
        if why:
            pytest.skip(why)
        with postgres_server.server() as uri:
            yield from served(uri, folder)


def served(database: Path | str, folder: Path) -> Iterator[Site]:
    home = folder / "home"
    home.mkdir()
    store = Store(f"sqlite:///{database}" if isinstance(database, Path) else database, home)
    story = mlflow_story.tell(store, folder / "bundles")
    kept = os.environ.get("GRACEFUL_SCREENSHOTS")
    shots = Path(kept) / store.registry.address.uri.partition(":")[0] if kept else folder / "shots"
    shots.mkdir(parents=True, exist_ok=True)
    with mlflow_server.server(database, home / "artifacts") as uri, chromium.browser() as page:
        yield Site(uri=uri, store=store, story=story, page=page, shots=shots)


def answers(link: str) -> bytes:
    with urllib.request.urlopen(link, timeout=600) as answer:
        content: bytes = answer.read()
    return content


def require_reachable(site: Site, links: list[str]) -> set[tuple[str, str]]:
    """Follow every link of ours on a page; returns the versions that they lead to."""
    for link in links:
        if "get-artifact" in link:
            assert answers(link), link
    seen = set()
    for link in {link for link in links if "#/models/" in link and "/versions/" in link}:
        assert link.startswith(site.uri), link
        model, _, number = link.partition("#/models/")[2].partition("?")[0].partition("/versions/")
        assert site.store.registry.client.get_model_version(model, number).source.startswith("models:/m-")
        seen.add((model, number))
    return seen


def test_version_page_shows_ancestors_and_leads_to_them(site: Site) -> None:
    page = site.open("/models/glyphs/versions/4")
    assert page.wait(f"{PICTURES}.map(image => image.naturalWidth)") == [700]
    text = page.text()
    assert "PASSED: worst NFR 0.80% vs 2 predecessors, accuracy 0.875" in text
    rows: Any = page.ask("[...document.querySelectorAll('td')].map(cell => cell.innerText.trim())")
    start = rows.index("v2")
    assert rows[start : start + 4] == ["v2", "0.80% [0.40, 1.20]", "2.00%", "passed"]
    links = page.ask(LINKS)
    assert require_reachable(site, links) == {("glyphs", "2"), ("glyphs", "1")}
    assert sum("get-artifact" in link for link in links) == 6
    page.picture(site.shots / "version.png", height=1000)
    page.open(next(link for link in links if "/versions/2" in link))
    page.wait("document.body.innerText.includes('Version 2')")
    assert page.wait(f"{PICTURES}.length") == 1


def test_held_version_says_why(site: Site) -> None:
    page = site.open("/models/glyphs/versions/3")
    page.wait(f"{PICTURES}.length")
    text = page.text()
    assert "HELD: worst NFR 5.00%" in text
    assert "exceeds" in text
    page.picture(site.shots / "held.png", height=1000)


def test_model_page_shows_the_family_with_its_branch(site: Site) -> None:
    page = site.open("/models/glyphs")
    assert page.wait(f"{PICTURES}.map(image => image.naturalWidth)") == [700]
    assert "glyphs: champion is v4, 4 versions" in page.text()
    rows: Any = page.ask("[...document.querySelectorAll('td')].map(cell => cell.innerText.trim())")
    start = rows.index("v4 champion")
    assert rows[start : start + 4] == ["v4 champion", "passed", "v2, NFR 0.80% of 2.00%: passed", "-"]
    start = rows.index("v2 previous")
    assert rows[start + 3] == "v3, v4, glyphs-edge edge-v1"
    found = require_reachable(site, page.ask(LINKS))
    assert {("glyphs", str(number)) for number in (1, 2, 3, 4)} | {("glyphs-edge", "1")} == found
    svg = answers(page.ask(f"{PICTURES}[0].src")).decode()
    assert "NFR 1.10% of 2.00%: passed vs v2" in svg
    page.picture(site.shots / "model.png", height=1000)
    page = site.open("/models/glyphs-edge")
    page.wait(f"{PICTURES}.length")
    assert "glyphs v2, NFR 1.10% of 2.00%: passed" in page.text()
    page.picture(site.shots / "branch.png", height=1000)


def test_run_page_links_inputs_and_output(site: Site) -> None:
    page = site.open(site.run("v4"))
    page.wait("document.body.innerText.includes('Logged models')")
    text = page.wait(
        "['glyphs-v1', 'glyphs-v2', 'Input', 'Output'].every(word => document.body.innerText.includes(word))"
        " && document.body.innerText"
    )
    assert "nfr_pct/v2" in text
    assert "nfr_by_predecessor_pct" in text
    nodes = [site.story[name].model_id for name in ("v1", "v2", "v4")]
    links = page.ask(LINKS)
    assert all(any(node in link for link in links) for node in nodes)
    assert ("glyphs", "4") in require_reachable(site, links)
    page.picture(site.shots / "run.png", height=2200)


def test_charts_show_the_flips_by_predecessor(site: Site) -> None:
    page = site.open(f"{site.run('v4')}/model-metrics")
    page.resize(1600)
    page.wait("document.body.innerText.includes('nfr_by_predecessor_pct')")
    assert page.wait("document.querySelectorAll('.js-plotly-plot').length")
    page.picture(site.shots / "charts.png", height=1600)


def test_flips_are_a_table_with_pictures(site: Site) -> None:
    page = site.open(f"{site.run('v4')}/artifacts/lineage/negative_flips.json")
    page.wait("document.body.innerText.includes('test-0008')")
    widths = page.wait("(w => w.length && w.every(x => x > 0) && w)([...document.querySelectorAll('td img, [role=cell]"
                       " img')].map(image => image.naturalWidth))")  # fmt: skip
    assert set(widths) == {56}
    assert "Error parsing" not in page.text()
    page.picture(site.shots / "flips.png", height=1000)


def test_report_page_is_complete_by_itself(site: Site, tmp_path: Path) -> None:
    path = site.store.evidence(site.story["v4"], "report.html", tmp_path)
    site.page.open(path.as_uri())
    text = site.page.wait("document.querySelectorAll('svg').length && document.body.innerText")
    assert "glyphs v4 passed" in text
    assert "Negative flips by ancestor" in text
    assert site.page.ask("document.querySelectorAll('svg')[0].getBoundingClientRect().width") > 400
    site.page.picture(site.shots / "report.png", height=1000)
