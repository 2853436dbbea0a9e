"""`graceful schema`: the keys of a spec for people, the JSON schema for editors. Runs on the client."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from graceful import section_keys
from graceful.cli import output as out
from graceful.errors import SpecError
from graceful.spec import RefreshSpec


def show(key: str | None, output: str) -> int:
    """Print all keys, or those at and below one.

    Raises:
        SpecError: No such key.
    """
    entries = _below(key)
    if output != "table":
        out.document(TypeAdapter(_annotation(key)).json_schema(), output)
        return 0
    top = min(_depth(entry) for entry in entries)
    rows = [_row(entry, _depth(entry) - top) for entry in entries]
    out.table(("key", "expects", "default", "meaning"), rows, title=key)
    return 0


def _below(key: str | None) -> Sequence[section_keys.Key]:
    all_keys = list(section_keys.keys(RefreshSpec))
    if key is None:
        return all_keys
    entries = [entry for entry in all_keys if any(f"{name}.".startswith(f"{key}.") for name in _names(entry))]
    if not entries:
        names = sorted({name for entry in all_keys for name in _names(entry)})
        matches = difflib.get_close_matches(key, names, n=1)
        raise SpecError(
            f"schema: no key {key!r}{f', did you mean {matches[0]}?' if matches else ''}; see `graceful schema`"
        )
    return entries


def _names(key: section_keys.Key) -> tuple[str, str]:
    """Return a key as specs write it (`task.fonts`), and with its kind (`task.glyphs.fonts`)."""
    path = key.path.replace("[]", "")
    return re.sub(r"<\w+>", "", path), re.sub(r"<(\w+)>", r".\1", path)


def _depth(key: section_keys.Key) -> int:
    return key.path.count(".") + key.path.count("<")


def _row(key: section_keys.Key, depth: int) -> tuple[str, str, str, str]:
    last = key.path.rpartition(".")[2]
    label = f"- {key.expects}" if key.path.endswith(">") else last
    expects = "" if key.path.endswith(">") else key.expects
    default = "required" if key.default is None else key.default
    return "  " * depth + label, expects, default, key.doc


def _annotation(key: str | None) -> Any:
    """Return the type at a key; of the members of a union the first that has it."""
    current: Any = RefreshSpec
    for part in key.split(".") if key else ():
        current = section_keys.child(current, part)
    return current
