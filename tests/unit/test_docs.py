"""Code blocks of the documents run as they are written, each page as one program."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "extending").glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_blocks_of_a_page_run_one_after_the_other(page: Path, tmp_path: Path) -> None:
    first, *others = blocks(page, "python")
    assert any("assert " in other for other in others), "the last block must check what the page claims"
    (tmp_path / "page.py").write_text("\n\n".join([first, *others]))
    command = [sys.executable, "-W", "error", "page.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")], ids=lambda page: page.stem)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_rooms_of_the_map_are_the_rooms_of_the_package() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("## Rooms")[2].partition("##")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`([a-z_]+)`", "\n".join(rows)))
    entries = (ROOT / "graceful").iterdir()
    package = {path.stem for path in entries if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert named == package - {"__init__", "__main__"}


def test_every_template_and_style_sheet_is_package_data() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["graceful"]
    installed = {path for pattern in patterns for path in (ROOT / "graceful").glob(pattern)}
    used = {path for path in (ROOT / "graceful").rglob("*") if path.name.endswith((".j2", ".css", ".gz", ".npz"))}
    assert used <= installed
