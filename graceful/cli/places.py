"""Where things are on this machine: the home folder and the registry. Runs on the client."""

from __future__ import annotations

import os
from pathlib import Path

from graceful import homes

REGISTRY = "mlflow.db"
"""The default registry under home; `graceful.lineage.connection` says the same, which a test checks."""


def home_folder(chosen: Path | None) -> Path:
    """`--home`, else $GRACEFUL_HOME, else .graceful here; absolute."""
    return homes.folder(chosen)


def registry_uri(home: Path) -> str:
    """$MLFLOW_TRACKING_URI, else the database under home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / REGISTRY}"


def database(uri: str) -> Path | None:
    """The file behind a sqlite URI, None for every other kind."""
    scheme, separator, rest = uri.partition(":///")
    return Path(rest.partition("?")[0]) if separator and scheme.startswith("sqlite") else None
