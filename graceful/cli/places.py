"""Where things are on this machine: the home folder and the registry. Runs on the client."""

from __future__ import annotations

import os
from pathlib import Path

from graceful import databases, homes


def home_folder(option: Path | None) -> Path:
    """Return `--home`, else $GRACEFUL_HOME, else .graceful here; absolute."""
    return homes.folder(option)


def registry_uri(home: Path) -> str:
    """Return $MLFLOW_TRACKING_URI, else the database under home."""
    return databases.quoted(os.environ.get("MLFLOW_TRACKING_URI", "")) or databases.default(home)
