"""A task of the user's own: a Python file that defines `task(**options)`. Driver and workers.

The file runs with the rights of the user who runs graceful, as any program of theirs does.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from graceful.errors import SpecError
from graceful.spec import PythonTask
from graceful.tasks import code
from graceful.tasks.importing import load_module
from graceful.tasks.options import require_options
from graceful.tasks.user_errors import user_file_errors
from graceful.tasks.user_learner import require_learner
from graceful.tasks.user_task import UserTask

_METHODS = ("network", "samples")
_ATTRIBUTES = ("classes", "augments")


def load_task(section: PythonTask, *, trusted: Collection[str] | None = None) -> UserTask:
    """Load the file and call its `task` with the options.

    Args:
        section: Names the code and its options.
        trusted: Digests of which the code must have one, where the section was recorded; None: it is the user's.

    Raises:
        SpecError: No such file, no `task` in it, an option it does not take, an error of its own (with file, line and
            exception), or a result that is not a task (with the missing member).
        IntegrityError: A bundle that has not the digest in its name or was changed since, or code that is not trusted.
        StorageError: A bundle's bucket cannot be reached.
    """
    source = code.source(section.file, trusted=trusted)
    path = source.path
    factory = getattr(load_module(source), "task", None)
    if not callable(factory):
        raise SpecError(f"{path}: defines no function task(**options); add one that returns the task")
    require_options(factory, section.options, key="task.options", what=f"task() in {path}")
    with user_file_errors(path):
        built = factory(**section.options)
    _require_members(path, built, named_learner=section.learner is not None)
    return UserTask(built, path)


def source_digest(section: PythonTask) -> str:
    """Return the SHA-256 of the code: of the file's bytes, of everything in the folder, of a bundle as its name says.

    Raises:
        SpecError: No such file, or a folder that cannot be packed.
    """
    return code.digest(section.file)


def _require_members(path: Path, built: object, *, named_learner: bool) -> None:
    """Refuse what is not a task; of one whose learner the spec names, the data are enough."""
    kind = type(built).__name__
    learner = getattr(built, "learner", None)
    if learner is not None and named_learner:
        raise SpecError(f"task.learner: {path} has a learner of its own, a {type(learner).__name__}; leave one out")
    needed = (*_METHODS, *(() if learner is not None else ("transform",)))
    for name in ("samples",) if named_learner else needed:
        if not callable(getattr(built, name, None)):
            raise SpecError(f"{path}: task() returned a {kind} without the method {name}; see graceful.tasks.base")
    for name in ("classes",) if named_learner else _ATTRIBUTES:
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
