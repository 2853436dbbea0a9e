"""Whether the task code that a version was recorded with may be run. Drivers, workers and serving processes.

A registry and a bucket say where a version's code lies, and anyone who may write to them may name any code. So recorded
code is run only where the spec of the version in training names code in its place, or where the user named its digest.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from graceful import packing
from graceful.chain import Unrunnable
from graceful.environment import TRUST_CODE_VARIABLE
from graceful.errors import GracefulError, one_line
from graceful.spec import PythonTask
from graceful.tasks import code, transform_digest

"""Digests that a serving process trusts, separated by commas or spaces."""


def trusted_by_environment() -> frozenset[str]:
    """Return the digests in `GRACEFUL_TRUST_CODE`."""
    return frozenset(os.environ.get(TRUST_CODE_VARIABLE, "").replace(",", " ").split())


def refusal(section: PythonTask, *, recorded: str, trusted: Collection[str]) -> Unrunnable | None:
    """Return why recorded code is not run, or None if the user trusts it. Nothing is run or fetched.

    Args:
        section: As it was recorded with the version.
        recorded: Digest of the version's transform, which covers its code.
        trusted: Digests of code that the user named.
    """
    digest = _digest_or_none(section.file)
    if digest in trusted:
        return None
    file = one_line(section.file)
    if digest is None or not (code.is_address(section.file) or _has_recorded_digest(section, recorded)):
        reason = f"its recorded code {file} is not here as it was saved"
        return Unrunnable(reason, "restore that code and trust its digest with --trust-code")
    remedy = f"read that code, then trust it with --trust-code {digest} (served: {TRUST_CODE_VARIABLE}={digest})"
    return Unrunnable(f"its recorded code {file} is not trusted", remedy)


def _digest_or_none(file: str) -> str | None:
    """Return the digest of a task's code; None where the path is missing or cannot be code, whatever it names."""
    try:
        path = Path(file)
        small = path.is_dir() or (path.is_file() and path.stat().st_size <= packing.LARGEST)
        return code.digest(file) if small or code.is_address(file) else None
    except (GracefulError, OSError):
        return None


def _has_recorded_digest(section: PythonTask, recorded: str) -> bool:
    try:
        return transform_digest(section) == recorded
    except GracefulError:
        return False
