"""A task of the user's own: a Python file that defines `task(**options)`. Driver and workers.

The file runs with the rights of whoever runs graceful, as any program of theirs does. Its module's name is derived from
its path, and a worker that loads the same path gets the same name, so that objects of its classes can be pickled.

A folder's `task.py` imports the modules beside it by their plain names, as a script does: its folder comes first on
`sys.path` and stays there for imports inside functions. Of several such folders in a process, the last one loaded.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from graceful.errors import SpecError
from graceful.spec import PythonTask
from graceful.tasks import code
from graceful.tasks.watched import Watched, blamed

_METHODS = ("network", "samples", "transform")
_ATTRIBUTES = ("classes", "augments")


def load_task(section: PythonTask) -> Watched:
    """Load the file and call its `task` with the options.

    Raises:
        SpecError: No such file, no `task` in it, an option it does not take, an error of its own (with file, line and
            exception), or a result that is no task (with the missing member).
        IntegrityError: A bundle that has not the digest in its name.
        StorageError: A bundle's bucket cannot be reached.
    """
    path = code.module_of(section.file)
    folder = path.parent if code.is_address(section.file) or Path(section.file).is_dir() else None
    factory = getattr(_module(path, folder), "task", None)
    if not callable(factory):
        raise SpecError(f"{path}: defines no function task(**options); add one that returns the task")
    _check_options(path, factory, section.options)
    with blamed(path):
        built = factory(**section.options)
    _check_members(path, built)
    return Watched(built, path)


def source_digest(section: PythonTask) -> str:
    """SHA-256 of the code: of the file's bytes, of everything in the folder, of a bundle as its name says.

    Raises:
        SpecError: No such file, or a folder that cannot be packed.
    """
    return code.digest(section.file)


def _module(path: Path, folder: Path | None) -> ModuleType:
    """Import the file, once per process and content; of a folder, also when another file in it has changed."""
    source = code.read(path)
    content = hashlib.sha256(source).hexdigest() if folder is None else code.digest(str(folder))
    resolved = path.resolve()
    name = f"graceful_task_{resolved.stem}_{hashlib.sha256(str(resolved).encode()).hexdigest()[:8]}"
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__source_sha256__", "") == content:
        return loaded
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise SpecError(f"task.file: {path} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    if folder is not None:
        _put_first(folder.resolve())
    sys.modules[name] = module
    try:
        with blamed(path), _without_bytecode():
            exec(compile(source, str(resolved), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    module.__dict__["__source_sha256__"] = content
    return module


# --- modules beside the file ------------------------------------------------------------------------------------------

_folders: set[str] = set()
"""Task folders that were put on `sys.path`, a fact about this process."""


def _put_first(folder: Path) -> None:
    """Let `import x` find x.py of this folder, as it is now, and not that of another task.

    Raises:
        SpecError: A module beside the file has the name of one of Python's own, or of one that is loaded already.
    """
    _folders.add(str(folder))
    for path in [*folder.glob("*.py"), *(init.parent for init in folder.glob("*/__init__.py"))]:
        name = path.stem
        if path.name == code.ENTRY or name.startswith("__"):
            continue
        own = name in sys.stdlib_module_names
        if own or (name in sys.modules and not _is_beside(sys.modules[name])):
            whose = "is Python's own" if own else "is loaded already from elsewhere"
            raise SpecError(f"task.file: {path}: a module {name!r} {whose}; give it another name here")
    known = {path.stem for each in _folders for path in Path(each).glob("*")}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in known and _is_beside(module):
            del sys.modules[name]
    sys.path[:] = [str(folder), *(entry for entry in sys.path if entry not in _folders)]
    importlib.invalidate_caches()


def _is_beside(module: ModuleType) -> bool:
    """Whether a module was imported from a task's folder."""
    places = (getattr(module, "__file__", None) or "", *(getattr(module, "__path__", None) or ()))
    return any(Path(place).is_relative_to(folder) for place in places if place for folder in _folders)


@contextmanager
def _without_bytecode() -> Iterator[None]:
    """Python takes an edit within a second that keeps the length for no edit, if it finds bytecode."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


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
    if (
        not isinstance(classes, tuple)
        or not all(isinstance(name, str) and name.strip() for name in classes)
        or not classes
    ):
        raise SpecError(f"{path}: classes must be a tuple of names, got {classes!r:.80}; write classes = ('a', 'b')")
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise SpecError(f"{path}: classes must differ, {twice!r} occurs twice; rename one")
