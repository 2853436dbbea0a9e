"""Rules for paths that people write: what a path may not be. Runs in every process."""

from __future__ import annotations

import os
from pathlib import Path

LONGEST_PART = 255
"""Bytes of one name in a path; the limit of the usual file systems."""
LONGEST = 4095
"""Bytes of a path; the limit of Linux."""


def problem(path: str | Path) -> str | None:
    """Return what is wrong with a path; None if it can name a file."""
    text = str(path)
    if "\0" in text:
        return "must not hold a NUL character"
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        return "must be text that a file system can hold"
    if len(encoded) > LONGEST or any(len(part) > LONGEST_PART for part in encoded.split(b"/")):
        return f"must be a path of at most {LONGEST} bytes, and {LONGEST_PART} between two slashes, got {len(encoded)}"
    try:
        Path(text).expanduser()
    except RuntimeError:
        return "there is no such home directory; write an absolute path"
    return None


def checked(path: str) -> str:
    """Return the path itself, for keys of a document.

    Raises:
        ValueError: It cannot name a file.
    """
    wrong = problem(path)
    if wrong is not None:
        raise ValueError(wrong)
    return path
