"""Address of the registry of this machine. Runs on the client."""

from __future__ import annotations

import os
from pathlib import Path

from graceful import databases
from graceful.environment import REGISTRY_VARIABLE


def registry_uri(home: Path) -> str:
    """Return $MLFLOW_TRACKING_URI, else the database under home."""
    return databases.quoted(os.environ.get(REGISTRY_VARIABLE, "")) or databases.default(home)
