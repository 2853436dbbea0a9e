"""Code blocks of the documents run as they are written, each page as one program."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import yaml

from graceful import catalogue, spec
from graceful.cli.app import graceful as command_line
from graceful.losses import registry as losses

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "extending").glob("*.md"))
WRITTEN = [path.relative_to(ROOT) for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])]
"""Documents that people write; others are made when the site is built."""
HELP = command_line.context_settings["help_option_names"]
"""A command keeps the names of the first context that it meets."""


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


def test_python_blocks_of_guides_import_what_exists() -> None:
    pages = [page for page in WRITTEN if ROOT / page not in PAGES and blocks(ROOT / page, "python")]
    assert {page.stem for page in pages} >= {"task", "adapters"}
    for page in pages:
        for block in blocks(ROOT / page, "python"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("graceful"):
                    names: dict[str, object] = {}
                    exec(ast.unparse(node), names)  # an import alone: raises where the name does not exist
                    assert all(alias.name in names for alias in node.names)


@pytest.mark.parametrize("page", WRITTEN, ids=str)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        path = ((ROOT / page).parent / target).resolve()
        assert path.exists() or path.parent == ROOT / "docs" / "reference", target  # the site's build checks the latter


def test_specs_in_documents_are_valid() -> None:
    specs = [block for page in WRITTEN for block in blocks(ROOT / page, "yaml") if "\nname: " in block]
    assert len(specs) >= 4
    for block in specs:
        spec.parse(yaml.safe_load(block), where=block.splitlines()[0])


def test_commands_in_documents_can_be_run() -> None:
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in WRITTEN if page.name != "CHANGELOG.md"]
    lines = [
        line
        for text in texts
        for line in re.findall(r"^    graceful ([a-z].*?)(?:  +#.*|   +.*)?$", text, re.MULTILINE)
    ]
    assert len(lines) > 30
    for line in lines:
        words = shlex.split(line, comments=True)
        command: click.Command = command_line
        while isinstance(command, click.Group) and words:
            name = words.pop(0)
            found = command.get_command(click.Context(command, help_option_names=HELP), name)
            assert found is not None, line
            command = found
        parser = command.make_parser(click.Context(command, help_option_names=HELP))
        _, left, _ = parser.parse_args(list(words))  # raises on an option that the command does not have
        assert not left, line


def test_readme_is_short_enough_to_be_read() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 150


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    pages = {
        name: (tmp_path / "site" / "reference" / f"{name}.html").read_text() for name in ("commands", "spec", "metrics")
    }
    assert "graceful schedule run-now" in pages["commands"]
    assert "image_folder" in pages["spec"]
    assert all(f"<code>{name}</code>" in pages["metrics"] for name in catalogue.METRICS)
    assert not [name for name, page in pages.items() if "&amp;lt;" in page], "escaped twice"


def test_pictures_of_the_concepts_are_those_that_the_script_draws() -> None:
    drawn = runpy.run_path(str(ROOT / "docs" / "_hooks" / "pictures.py"))["pictures"]()
    assert len(drawn) >= 7
    for name, content in drawn.items():
        assert (ROOT / "docs" / "pictures" / name).read_text(encoding="utf-8") == content, "run docs/_hooks/pictures.py"
        assert f"pictures/{name})" in (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")


def test_decisions_have_their_three_parts_once_and_end_with_consequences() -> None:
    _, *entries = re.split(r"^## (?=\d)", (ROOT / "DECISIONS.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [int(entry.split(" ", 1)[0]) for entry in entries] == list(range(1, len(entries) + 1))
    for entry in entries:
        if "**Context.**" not in entry:
            continue
        parts = re.findall(r"^\*\*(\w+)\.\*\*", entry, re.MULTILINE)
        assert parts == ["Context", "Decision", "Consequences"], entry.splitlines()[0]
        assert entry.strip().split("\n\n")[-1].startswith("**Consequences.**"), entry.splitlines()[0]


def test_every_loss_and_method_has_a_card() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    written = "\n".join(line for line in text.splitlines() if line.startswith("| write |"))
    for kind in [*losses.kinds(), "lqf", "adaptive", "decay", "blend", "reference", "pruning", "gallery"]:
        assert re.search(rf"\b{kind}\b", written), kind
    for card in text.split("\n### ")[1:]:
        rows = re.findall(r"^\| (\w+) \|", card, re.MULTILINE)
        assert {"idea", "source", "write", "costs", "fails", "measured"} <= set(rows), card.splitlines()[0]


def test_every_metric_says_what_it_measures() -> None:
    assert not [name for name, metric in catalogue.METRICS.items() if not metric.meaning.endswith(".")]


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
