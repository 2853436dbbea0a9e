"""Learners of other packages, through the entry-point group `graceful.learners`. Driver and workers.

An entry point's name is what a spec writes as `task.learner.kind`, its value a class or function that makes the learner
of keyword arguments, e.g. in another package's pyproject.toml:

    [project.entry-points."graceful.learners"]
    sentences = "my_package.sentences:Sentences"

The client does not look at them, since such packages need torch. Installing a package is what trusts it.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graceful import plugins
from graceful.errors import SpecError

GROUP = "graceful.learners"


def find(kind: str) -> Callable[..., Any]:
    """Return what makes the learners of a kind.

    Raises:
        SpecError: No installed package offers it, or the one that does cannot be used; why.
    """
    available, reasons = _registered()
    if kind in available:
        return available[kind]
    if kind in reasons:
        raise SpecError(f"task.learner.kind: {reasons[kind]}; correct or reinstall that package")
    close = difflib.get_close_matches(kind, available, n=1)
    hint = f"did you mean {close[0]}?" if close else "install the package that does, on every node"
    raise SpecError(f"task.learner.kind: no installed package offers the learner {kind!r}; {hint}")


def unavailable(kind: str) -> str | None:
    """Return why a kind cannot be used, as the rest of a sentence about a version; None where it can."""
    try:
        find(kind)
    except SpecError:
        return f"its learner {kind!r} is not installed here"
    return None


def source(kind: str) -> Path:
    """Return the file that defines what makes the learners of a kind; raises as `find`."""
    made_by = find(kind)
    return Path(inspect.getsourcefile(inspect.unwrap(made_by)) or kind)


def identity(kind: str) -> Mapping[str, str]:
    """Return what tells one release of a learner from another: its package, the version of it, and the file's SHA-256.

    Raises:
        SpecError: As `find`.
    """
    path = source(kind)
    (entry,) = importlib.metadata.entry_points(group=GROUP, name=kind)
    package = {} if entry.dist is None else {"package": entry.dist.name, "version": entry.dist.version}
    return {**package, "source": hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""}


@functools.cache
def _registered() -> tuple[dict[str, Callable[..., Any]], dict[str, str]]:
    return plugins.collected(GROUP, "learner", owner=lambda kind: None, fault=_fault)


def _fault(made_by: object, kind: str) -> str | None:
    """Return what is wrong with what another package offers as a learner; None: nothing."""
    if not (inspect.isclass(made_by) or inspect.isfunction(made_by)):
        return "which is not a class or function that makes a learner"
    return None
