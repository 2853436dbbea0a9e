"""Read a spec: YAML file, `--set` overrides, validation. Runs on the client, and once more where a program starts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from graceful.errors import SpecError
from graceful.spec.problems import explain
from graceful.spec.refresh import RefreshSpec


def load(path: str | Path, overrides: Sequence[str] = ()) -> RefreshSpec:
    """Read a spec file, apply `a.b=c` overrides, validate.

    Relative paths inside the spec (a Python task's file, an image folder) are resolved against the file's folder.

    Raises:
        SpecError: One line for the first problem (and how many more there are): key path, file, value, bound, remedy.
    """
    where = Path(path)
    try:
        document = yaml.load(where.read_text(encoding="utf-8"), Loader=_Strict)
    except FileNotFoundError as e:
        raise SpecError(f"{where}: no such spec file; check the path") from e
    except (OSError, UnicodeDecodeError) as e:
        raise SpecError(f"{where}: cannot be read ({_one_line(e)}); give a YAML file") from e
    except yaml.YAMLError as e:
        raise SpecError(f"{where}: not valid YAML ({_one_line(e)})") from e
    if not isinstance(document, dict):
        raise SpecError(f"{where}: must be a mapping of keys, got {type(document).__name__}; see `graceful schema`")
    for override in overrides:
        document = override_with(document, override)
    return parse(document, where=str(where))


def parse(document: Mapping[str, Any], *, where: str = "spec") -> RefreshSpec:
    """Validate an already loaded document.

    Args:
        document: Nested mappings and lists; left as it is.
        where: Named in errors; relative paths inside the document are resolved against its folder.

    Raises:
        SpecError: As `load`.
    """
    try:
        return RefreshSpec.model_validate(_anchored(document, Path(where).parent))
    except ValidationError as e:
        raise SpecError(explain(e, RefreshSpec, where)) from e


def override_with(document: dict[str, Any], override: str) -> dict[str, Any]:
    """Return the document with one `a.b=c` applied; c is YAML, a number selects an item of a list, + adds one.

    Raises:
        SpecError: No `=`, no valid YAML, or the path leads through a value or past the end of a list.
    """
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise SpecError(f"--set {override}: must look like a.b=value")
    try:
        value = yaml.load(text, Loader=_Strict)
    except yaml.YAMLError as e:
        raise SpecError(f"--set {override}: the value is not valid YAML ({_one_line(e)})") from e
    try:
        changed: dict[str, Any] = _replaced(document, parts, value)
    except _NoSuchPlaceError as e:
        at = ".".join(parts[: len(parts) - e.remaining])
        raise SpecError(f"--set {override}: {at or 'the spec'} {e}") from e
    return changed


class _NoSuchPlaceError(Exception):
    def __init__(self, message: str, remaining: int) -> None:
        super().__init__(message)
        self.remaining = remaining


def _replaced(node: Any, parts: Sequence[str], value: Any) -> Any:
    """Copy the path that changes and share the rest: YAML anchors may put one node in two places."""
    if not parts:
        return value
    head, *rest = parts
    if head == "+" and not rest and (node is None or isinstance(node, list)):
        return [*(node or []), value]
    if isinstance(node, list):
        if not head.isdecimal() or int(head) >= len(node):
            raise _NoSuchPlaceError(f"is a list of {len(node)}, it has no item {head!r}; count from 0", len(parts))
        at = int(head)
        return [*node[:at], _replaced(node[at], rest, value), *node[at + 1 :]]
    if node is None and head.isdecimal():
        raise _NoSuchPlaceError("is not in the file, so it has no items to change; set the whole list", len(parts))
    if node is None or isinstance(node, dict):
        known = node or {}
        return {**known, head: _replaced(known.get(head), rest, value)}
    raise _NoSuchPlaceError(f"is a value ({node!r}), not a section", len(parts))


def _anchored(document: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Make the paths that a spec names absolute, so that the resolved spec runs from anywhere.

    Links are kept: the folder of a ConfigMap is one, and where it leads differs between pods.
    """
    resolved = dict(document)
    task = resolved.get("task")
    if isinstance(task, Mapping):
        task = dict(task)
        for key in ("file", "root"):
            value = task.get(key)
            if isinstance(value, str) and "://" not in value:
                task[key] = os.path.abspath(folder / Path(value).expanduser())
        resolved["task"] = task
    return resolved


class _Strict(yaml.SafeLoader):
    """YAML without its two silent losses: a key written twice, and a key that is no text (`on:` is a boolean)."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in (_TEXT, _MERGE):
                raise _refused(f"key {_source(key)!r} is not text; put it in quotes", key)
            if key.value in seen:
                raise _refused(f"key {key.value!r} is written twice; keep one", key)
            seen.add(key.value)
        return node


_TEXT = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"


def _source(node: yaml.Node) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else "(a list or mapping)"


def _refused(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _one_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"{error.problem}, line {error.problem_mark.line + 1}"
    return " ".join(str(error).split())
