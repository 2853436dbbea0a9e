"""Versions of what is installed beside the command line, read without importing it. Runs on the client."""

from __future__ import annotations

from importlib import metadata


def client_ray() -> str | None:
    """Return the version of Ray beside this command, read without importing it."""
    try:
        return metadata.version("ray")
    except metadata.PackageNotFoundError:
        return None
