"""A task of the user's own: a Python file that defines `task(**options)`. Driver and workers.

The file runs with the rights of whoever runs graceful, as any program of theirs does. Its module's name is derived from
its path, and a worker that loads the same path gets the same name, so that objects of its classes can be pickled.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from graceful.errors import SpecError
from graceful.spec import PythonTask
from graceful.tasks.watched import Watched, blamed

_METHODS = ("network", "samples", "transform")
_ATTRIBUTES = ("classes", "augments")


def load_task(section: PythonTask) -> Watched:
    """Load the file and call its `task` with the options.

    Raises:
        SpecError: No such file, no `task` in it, an option it does not take, an error of its own (with file, line and
            exception), or a result that is no task (with the missing member).
    """
    path = Path(section.file)
    factory = getattr(_module(path), "task", None)
    if not callable(factory):
        raise SpecError(f"{path}: defines no function task(**options); add one that returns the task")
    _check_options(path, factory, section.options)
    with blamed(path):
        built = factory(**section.options)
    _check_members(path, built)
    return Watched(built, path)


def source_digest(section: PythonTask) -> str:
    """SHA-256 of the file.

    Raises:
        SpecError: No such file.
    """
    return hashlib.sha256(_source(Path(section.file))).hexdigest()


def _source(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise SpecError(f"task.file: {path} cannot be read ({e.strerror}); check the path") from e


def _module(path: Path) -> ModuleType:
    """Import the file, once per process and content."""
    source = _source(path)
    resolved = path.resolve()
    name = f"graceful_task_{resolved.stem}_{hashlib.sha256(str(resolved).encode()).hexdigest()[:8]}"
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__source_sha256__", "") == hashlib.sha256(source).hexdigest():
        return loaded
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise SpecError(f"task.file: {path} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with blamed(path):
            exec(compile(source, str(resolved), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    module.__dict__["__source_sha256__"] = hashlib.sha256(source).hexdigest()
    return module


def _check_options(path: Path, factory: Callable[..., Any], options: dict[str, Any]) -> None:
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


def _check_members(path: Path, built: object) -> None:
    kind = type(built).__name__
    for name in _METHODS:
        if not callable(getattr(built, name, None)):
            raise SpecError(f"{path}: task() returned a {kind} without the method {name}; see graceful.tasks.base")
    for name in _ATTRIBUTES:
        if not hasattr(built, name):
            raise SpecError(f"{path}: task() returned a {kind} without the attribute {name}; see graceful.tasks.base")
    classes = built.classes  # type: ignore[attr-defined]
    if not isinstance(classes, tuple) or not all(isinstance(name, str) for name in classes) or not classes:
        raise SpecError(f"{path}: classes must be a tuple of names, got {classes!r:.80}; write classes = ('a', 'b')")
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise SpecError(f"{path}: classes must differ, {twice!r} occurs twice; rename one")
