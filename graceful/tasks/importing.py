"""Import a task's module and those beside it, from the folder or from bytes that were verified. Driver and workers.

The module's name is derived from its path, and a worker that loads the same path gets the same name, so that objects
of its classes can be pickled.

A folder's `task.py` imports the modules beside it by their plain names, as a script does. The folder comes first on
`sys.path` and stays there for imports inside functions; modules of verified code are found by a finder of ours instead,
whenever they are imported, because a folder may have been changed by then. Of several folders in a process, the last
one loaded.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from graceful import packing
from graceful.errors import IntegrityError, SpecError
from graceful.tasks import code
from graceful.tasks.user_errors import user_file_errors

_folders: set[str] = set()
"""Task folders whose modules this process has imported, or could have."""


def load_module(source: code.Source) -> ModuleType:
    """Return the module that defines `task`, imported once per process and content of all its files.

    Raises:
        SpecError: It is not a Python file, fails, or has a module beside it that would hide another.
    """
    path = source.path.resolve()
    name = f"graceful_task_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__source_sha256__", "") == source.digest:
        return loaded
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SpecError(f"task.file: {source.path} is not a Python file; its name must end in .py")
    module = module_from_spec(spec)
    if source.folder is not None:
        _import_from(source.folder.resolve(), source.files)
    sys.modules[name] = module
    try:
        with user_file_errors(source.path), _without_bytecode():
            exec(compile(source.entry, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    module.__dict__["__source_sha256__"] = source.digest
    return module


def forget_task_folders() -> None:
    """Stop importing from the folders of tasks."""
    sys.path[:] = [entry for entry in sys.path if entry not in _folders]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, VerifiedModules)]
    _folders.clear()


def _import_from(folder: Path, files: Mapping[str, bytes] | None) -> None:
    """Import from this folder, from its files or from verified content, and no longer from that of another task.

    Raises:
        SpecError: A module beside the file has the name of one of Python's own, or of one that is loaded already.
    """
    _folders.add(str(folder))
    for path in _modules_in(folder, files):
        name = path.stem
        if path.name == packing.ENTRY or name.startswith("__"):
            continue
        standard = name in sys.stdlib_module_names
        if standard or (name in sys.modules and not _is_task_module(sys.modules[name])):
            conflict = "is Python's own" if standard else "is loaded already from elsewhere"
            raise SpecError(f"task.file: {path}: a module {name!r} {conflict}; give it another name here")
    names = {path.stem for task_folder in _folders for path in Path(task_folder).glob("*")}
    names |= {Path(name).parts[0].partition(".")[0] for name in files or ()}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in names and _is_task_module(module):
            del sys.modules[name]
    other_finders = [finder for finder in sys.meta_path if not isinstance(finder, VerifiedModules)]
    sys.meta_path[:] = other_finders if files is None else [VerifiedModules(folder, files), *other_finders]
    new_entries = [str(folder)] if files is None else []
    sys.path[:] = [*new_entries, *(entry for entry in sys.path if entry not in _folders)]
    importlib.invalidate_caches()


def _modules_in(folder: Path, files: Mapping[str, bytes] | None) -> list[Path]:
    """Return the modules and the package folders that lie in the folder itself."""
    if files is None:
        return [*folder.glob("*.py"), *(init.parent for init in folder.glob("*/__init__.py"))]
    paths = [Path(name) for name in files]
    modules = [path for path in paths if len(path.parts) == 1 and path.suffix == ".py"]
    packages = [path.parent for path in paths if len(path.parts) == 2 and path.name == "__init__.py"]
    return [folder / path for path in (*modules, *packages)]


def _is_task_module(module: ModuleType) -> bool:
    """Return whether a module was imported from a task's folder."""
    locations = (getattr(module, "__file__", None) or "", *(getattr(module, "__path__", None) or ()))
    return any(Path(location).is_relative_to(folder) for location in locations if location for folder in _folders)


@contextmanager
def _without_bytecode() -> Iterator[None]:
    """Write no bytecode: with it Python misses an edit within a second that keeps the length of the file."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


# --- verified modules -------------------------------------------------------------------------------------------------


class VerifiedModules(MetaPathFinder):
    """Finds the modules of one folder in verified content.

    Args:
        folder: Where the files lie, resolved.
        files: Relative name -> verified content.
    """

    def __init__(self, folder: Path, files: Mapping[str, bytes]) -> None:
        self.folder, self.files = folder, files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to import a module of the folder; None: it has no such module."""
        if "." in fullname and not any(Path(location).is_relative_to(self.folder) for location in path or ()):
            return None
        stem = fullname.replace(".", "/")
        for name, inside in ((f"{stem}/__init__.py", [str(self.folder / stem)]), (f"{stem}.py", None)):
            if name in self.files:
                location = str(self.folder / name)
                loader = _VerifiedLoader(fullname, location, self.files[name])
                return spec_from_file_location(fullname, location, loader=loader, submodule_search_locations=inside)
        compiled = next((stem + ending for ending in EXTENSION_SUFFIXES if stem + ending in self.files), None)
        if compiled is not None:
            return self._extension_spec(fullname, compiled)
        inner = any(name.startswith(f"{stem}/") and name.endswith(".py") for name in self.files)
        if "." in fullname and not inner:  # Python would look into the folder itself, where anything may lie by now
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        if not inner or ("." not in fullname and PathFinder.find_spec(fullname) is not None):
            return None
        spec = ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = [str(self.folder / stem)]
        return spec

    def _extension_spec(self, fullname: str, name: str) -> ModuleSpec | None:
        """Return the spec of a compiled module, which the system loads from a file that must still be as verified."""
        path = self.folder / name
        if path.read_bytes() != self.files[name]:
            raise IntegrityError(f"{path}: was changed after it was verified; delete {self.folder}")
        return spec_from_file_location(fullname, path)


class _VerifiedLoader(SourceFileLoader):
    """Compiles verified bytes without reading the file or its bytecode."""

    def __init__(self, fullname: str, path: str, content: bytes) -> None:
        super().__init__(fullname, path)
        self._content = content

    def path_stats(self, path: Any) -> Mapping[str, Any]:
        """Raise, so that the import system neither reads nor writes bytecode."""
        raise OSError(f"{path}: bytecode is not used")

    def get_data(self, path: Any) -> bytes:
        """Return the verified content of the module, or any other file as it lies there."""
        return self._content if path == self.path else super().get_data(path)
