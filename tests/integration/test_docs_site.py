"""The documentation opened from a folder, without a server or a network: its search and its layout on a phone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import chromium
from tests.support.chromium import Page

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(chromium.executable() is None, reason="no chromium on the PATH"),
]
ROOT = Path(__file__).parents[2]
BROKEN = "[...document.images].filter(image => !image.naturalWidth).map(image => image.src)"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, Path]]:
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=True, timeout=600)
    with chromium.browser() as page:
        yield page, folder


@pytest.mark.parametrize("name", ["index.html", "guides/gate.html"])
def test_search_finds_a_page_in_a_folder(site: tuple[Page, Path], name: str) -> None:
    page, folder = site
    page.open((folder / name).as_uri())
    page.wait("document.readyState === 'complete' && !!document.querySelector('.md-search__input')")
    page.wait("document.querySelector('.md-search__input').focus() || !!document.querySelector('iframe')")
    page.call("Input.insertText", text="backfill")
    assert "Indices and backfills" in page.wait(
        "(text => text.includes('matching') && text)(document.querySelector('.md-search-result').innerText)"
    )


@pytest.mark.parametrize("name", ["index.html", "reference/helm.html", "results/flips.html", "examples.html"])
def test_no_page_is_wider_than_a_phone(site: tuple[Page, Path], name: str) -> None:
    page, folder = site
    page.call("Emulation.setDeviceMetricsOverride", width=390, height=900, deviceScaleFactor=1, mobile=True)
    page.open((folder / name).as_uri())
    page.wait("document.readyState === 'complete' && !!document.querySelector('.md-content')")
    assert page.ask("document.documentElement.scrollWidth") <= 390
    assert page.ask(BROKEN) == []
