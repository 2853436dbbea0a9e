"""Read a spec: YAML file, `--set` overrides, validation. Runs on the client, and once more where a program starts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from graceful import addresses, documents, homes, redact, section_errors
from graceful.errors import SpecError
from graceful.losses import registry
from graceful.spec import credentials
from graceful.spec.refresh import RefreshSpec

LONGEST_INDEX = 10
"""Digits of the number of an item in a list."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> RefreshSpec:
    """Read a spec file, apply `a.b=c` overrides, validate.

    Relative paths inside the spec (a Python task's file, an image folder) are resolved against the file's folder.

    Raises:
        SpecError: One line for the first problem (and how many more there are): key path, file, value, bound, remedy.
    """
    spec_path = Path(path)
    try:
        document = documents.read(spec_path)
    except FileNotFoundError as e:
        raise SpecError(f"{spec_path}: no such spec file; check the path") from e
    if not isinstance(document, dict):
        raise SpecError(f"{spec_path}: must be a mapping of keys, got {type(document).__name__}; see `graceful schema`")
    for override in overrides:
        document = override_with(document, override)
    spec = parse(document, where=str(spec_path))
    credentials.refuse_recorded(spec, str(spec_path))
    if spec.adapter is not None:
        raise SpecError(
            f"adapter in {spec_path}: nothing is trained for an adapter; run `graceful adapt {spec.adapter.old}"
            f" {spec.adapter.new}`, or leave it out"
        )
    return spec


def parse(document: Mapping[str, Any], *, where: str = "spec") -> RefreshSpec:
    """Validate an already loaded document.

    Args:
        document: Nested mappings and lists; left as it is.
        where: Named in errors; relative paths inside the document are resolved against its folder.

    Raises:
        SpecError: As `load`.
    """
    try:
        spec = RefreshSpec.model_validate(_anchored(document, where))
    except ValidationError as e:
        raise SpecError(section_errors.explain(e, _document(), where)) from e
    credentials.remember(spec)
    return spec


def _document() -> section_errors.Document:
    return section_errors.Document(
        root=RefreshSpec, name="spec", help="; see `graceful schema`", unavailable=registry.unavailable()
    )


def override_with(document: dict[str, Any], override: str) -> dict[str, Any]:
    """Return the document with one `a.b=c` applied; c is YAML, a number selects an item of a list, + adds one.

    Raises:
        SpecError: No `=`, no valid YAML, or the path leads through a value or past the end of a list.
    """
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise SpecError(f"--set {key.strip()}: must look like a.b=value")
    value = documents.parse(text, where=f"--set {key.strip()}")
    try:
        changed: dict[str, Any] = _replaced(document, parts, value)
    except _NoSuchKeyError as e:
        prefix = ".".join(parts[: len(parts) - e.remaining])
        raise SpecError(f"--set {key.strip()}: {prefix or 'the spec'} {e}") from e
    return changed


class _NoSuchKeyError(Exception):
    def __init__(self, message: str, remaining: int) -> None:
        super().__init__(message)
        self.remaining = remaining


def _replaced(node: Any, parts: Sequence[str], value: Any, name: str = "") -> Any:
    """Copy the path that changes and share the rest: YAML anchors may put one node in two places."""
    if not parts:
        return value
    part, *remaining = parts
    if part == "+" and not remaining and (node is None or isinstance(node, list)):
        return [*(node or []), value]
    if isinstance(node, list):
        if not _is_index(part) or int(part) >= len(node):
            raise _NoSuchKeyError(f"is a list of {len(node)}, it has no item {part!r}; count from 0", len(parts))
        index = int(part)
        return [*node[:index], _replaced(node[index], remaining, value, name), *node[index + 1 :]]
    if node is None and _is_index(part):
        raise _NoSuchKeyError("is not in the file, so it has no items to change; set the whole list", len(parts))
    if node is None or isinstance(node, dict):
        section = node or {}
        return {**section, part: _replaced(section.get(part), remaining, value, part)}
    raise _NoSuchKeyError(f"is a value ({redact.hidden(node, name)!r}), not a section", len(parts))


def _is_index(part: str) -> bool:
    return part.isascii() and part.isdecimal() and len(part) < LONGEST_INDEX


def _anchored(document: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Make the paths that a spec names absolute, so that the resolved spec runs from anywhere.

    Links are kept: the folder of a ConfigMap is one, and where it leads differs between pods.
    """
    task = document.get("task")
    if not isinstance(task, Mapping):
        return dict(document)
    task = dict(task)
    for key in ("file", "root", "files"):
        if key in task:
            task[key] = _absolute(task[key], f"task.{key}", where)
    network = task.get("network")
    if isinstance(network, Mapping) and "checkpoint" in network and network.get("revision") is None:
        checkpoint = _absolute(network["checkpoint"], "task.network.checkpoint", where)
        task["network"] = {**network, "checkpoint": checkpoint}
    judgments = task.get("judgments")
    if isinstance(judgments, Mapping) and "files" in judgments:
        files = _absolute(judgments["files"], "task.judgments.files", where)
        task["judgments"] = {**judgments, "files": files}
    return {**document, "task": task}


def _absolute(value: Any, key: str, where: str) -> Any:
    """Return a path, or the paths of a list or mapping, relative to the spec's folder; addresses stay as they are."""
    if isinstance(value, Mapping):
        return {name: _absolute(part, f"{key}.{name}", where) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_absolute(part, key, where) for part in value]
    if not isinstance(value, str) or addresses.is_remote(value) or addresses.has_other_scheme(value):
        return value
    return os.path.abspath(Path(where).parent / homes.expanded(value, what=f"{key} in {where}:"))
