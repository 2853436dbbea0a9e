"""A package outside the repository: modules and entry points in a folder for PYTHONPATH, as if installed there."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "extending"


def install(site: Path, name: str, modules: Mapping[str, str], entry_points: str) -> Path:
    """Write a package and what is recorded about it; returns the folder for PYTHONPATH."""
    package = site / name
    package.mkdir(parents=True)
    for module, text in {"__init__": "", **modules}.items():
        (package / f"{module}.py").write_text(text, encoding="utf-8")
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    return site


def search_path(site: Path | None) -> str:
    """Return PYTHONPATH with the package, or without any, and what this process imports from."""
    return os.pathsep.join([*([] if site is None else [str(site)]), *filter(None, sys.path)])


def example(page: str, *, block: int = 0) -> str:
    """Return a Python block of a page below docs/extending."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return str(blocks[block])
