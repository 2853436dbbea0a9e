"""A task of the user's own: a Python file that defines `task(**options)`. Driver and workers.

The file runs with the rights of whoever runs graceful, as any program of theirs does.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from graceful.errors import SpecError
from graceful.spec import PythonTask
from graceful.tasks import code
from graceful.tasks.importing import load_module
from graceful.tasks.user_task import UserTask, require_learner, user_file_errors

_METHODS = ("network", "samples")
_ATTRIBUTES = ("classes", "augments")


def load_task(section: PythonTask, *, trusted: Collection[str] | None = None) -> UserTask:
    """Load the file and call its `task` with the options.

    Args:
        section: Names the code and its options.
        trusted: Digests of which the code must have one, where the section was recorded; None: it is the user's.

    Raises:
        SpecError: No such file, no `task` in it, an option it does not take, an error of its own (with file, line and
            exception), or a result that is no task (with the missing member).
        IntegrityError: A bundle that has not the digest in its name or was changed since, or code that is not trusted.
        StorageError: A bundle's bucket cannot be reached.
    """
    source = code.source(section.file, trusted=trusted)
    path = source.path
    factory = getattr(load_module(source), "task", None)
    if not callable(factory):
        raise SpecError(f"{path}: defines no function task(**options); add one that returns the task")
    _require_options(path, factory, section.options)
    with user_file_errors(path):
        built = factory(**section.options)
    _require_members(path, built)
    return UserTask(built, path)


def source_digest(section: PythonTask) -> str:
    """SHA-256 of the code: of the file's bytes, of everything in the folder, of a bundle as its name says.

    Raises:
        SpecError: No such file, or a folder that cannot be packed.
    """
    return code.digest(section.file)


def _require_options(path: Path, factory: Callable[..., Any], options: dict[str, Any]) -> None:
    parameters = inspect.signature(factory).parameters.values()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for option in options:
        if option not in named and not takes_any:
            close = difflib.get_close_matches(option, named, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(named) or 'no options'}"
            raise SpecError(f"task.options.{option}: task() in {path} takes no such option; {hint}")
    for name, parameter in named.items():
        if name not in options and parameter.default is parameter.empty:
            raise SpecError(f"task.options.{name}: required by task() in {path} and missing; add it")


def _require_members(path: Path, built: object) -> None:
    kind = type(built).__name__
    learner = getattr(built, "learner", None)
    for name in (*_METHODS, *(() if learner is not None else ("transform",))):
        if not callable(getattr(built, name, None)):
            raise SpecError(f"{path}: task() returned a {kind} without the method {name}; see graceful.tasks.base")
    for name in _ATTRIBUTES:
        if not hasattr(built, name):
            raise SpecError(f"{path}: task() returned a {kind} without the attribute {name}; see graceful.tasks.base")
    if learner is not None:
        require_learner(path, learner)
    classes = built.classes  # type: ignore[attr-defined]
    if (
        not isinstance(classes, tuple)
        or not all(isinstance(name, str) and name.strip() for name in classes)
        or not classes
    ):
        raise SpecError(f"{path}: classes must be a tuple of names, got {classes!r:.80}; write classes = ('a', 'b')")
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise SpecError(f"{path}: classes must differ, {twice!r} occurs twice; rename one")
