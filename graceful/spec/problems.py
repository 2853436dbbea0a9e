"""Turn what pydantic found wrong into one line: key path, file, what is wanted, what is there. Runs on the client."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from graceful import redact
from graceful.losses import registry
from graceful.sections import NAME, VERSION, Section
from graceful.spec import shape

PATTERNS = {
    NAME: "lower case letters, digits and inner hyphens, at most 63",
    VERSION: "MODEL@ALIAS, MODEL:NUMBER or MODEL:NAME, such as glyphs@champion",
}
"""What the patterns of keys want, in words."""
LONGEST = 60
"""Characters of a wrong value that a message repeats."""


@dataclass(frozen=True, kw_only=True)
class KeyLocation:
    """Where in the tree of keys an error lies.

    Attributes:
        path: As people write it: no union labels.
        annotation: What may stand there, bounds included; None for an unknown key.
        section: The section that holds the last key.
    """

    path: tuple[str, ...]
    annotation: Any
    section: type[Section]


def explain(error: ValidationError, root: type[Section], where: str) -> str:
    """One line for the first problem, and how many other keys have one."""
    problems = sorted(error.errors(include_url=False), key=_is_consequence)
    places = [place(root, problem["loc"]) for problem in problems]
    first = places[0]
    others = len({at.path for at in places}) - 1
    key, text = _problem(problems[0], first, root)
    more = f" (and {others} more)" if others else ""
    path = ".".join(part if part.isprintable() and part == part.strip() and part else repr(part) for part in key)
    return f"{path or 'spec'} in {where}: {text}{more}"


def _is_consequence(problem: ErrorDetails) -> bool:
    """A misspelt key is told first: that the right one is missing follows from it."""
    return problem["type"] != "extra_forbidden"


def place(root: type[Section], location: tuple[int | str, ...]) -> KeyLocation:
    """Follow pydantic's location through the tree, dropping the labels it adds for unions."""
    path: list[str] = []
    annotation: Any = root
    holder = root
    for part in location:
        found = shape.sections(annotation)
        if len(found) > 1 and isinstance(part, str):
            annotation = next((one for one in found if shape.kind_of(one) == part), annotation)
        elif len(found) == 1:
            holder = found[0]
            field = holder.model_fields.get(str(part))
            annotation = shape.annotation_of(field) if field else None
            path.append(str(part))
        elif isinstance(part, int):
            annotation = shape.item(annotation)
            path.append(str(part))
        elif (value := shape.value(annotation)) is not None:
            annotation = value
            path.append(part)
    return KeyLocation(path=tuple(path), annotation=annotation, section=holder)


Answer = tuple[tuple[str, ...], str]
"""Path of the key that people must change, and what to say about it."""


def _problem(problem: ErrorDetails, at: KeyLocation, root: type[Section]) -> Answer:
    match problem["type"]:
        case "extra_forbidden":
            return at.path, f"unknown key{_suggestion(at, root)}; see `graceful schema`"
        case "missing":
            return at.path, f"required and missing; must be {shape.expected(at.annotation)}"
        case "value_error":
            return _own_words(at, problem["msg"].removeprefix("Value error, "))
        case "union_tag_not_found" | "union_tag_invalid":
            return _kind(problem, at)
    return at.path, _value(problem, at)


def _kind(problem: ErrorDetails, at: KeyLocation) -> Answer:
    kinds = _kinds(at.annotation)
    if problem["type"] == "union_tag_not_found":
        return (*at.path, "kind"), f"required and missing; must be {shape.enumerated(kinds)}"
    got = str(problem["ctx"]["tag"])
    if got in registry.unavailable():
        return (*at.path, "kind"), registry.unavailable()[got]
    return (*at.path, "kind"), f"must be {shape.enumerated(kinds)}, got {got!r}{_nearest(got, kinds)}"


def _value(problem: ErrorDetails, at: KeyLocation) -> str:
    got = problem["input"]
    match problem["type"]:
        case "finite_number":
            wanted, remedy = "a finite number", ""
        case "string_pattern_mismatch":
            pattern = str(problem["ctx"]["pattern"])
            wanted, remedy = PATTERNS.get(pattern, f"text that matches {pattern}"), ""
        case "string_type":
            wanted, remedy = "text", "" if isinstance(got, Mapping | list | None) else "; put it in quotes"
        case _:
            wanted, remedy = _wanted(at), _nearest_word(got, at)
    return f"must be {wanted}, got {_shown(redact.hidden(got, at.path[-1] if at.path else ''))}{remedy}"


def _own_words(at: KeyLocation, text: str) -> Answer:
    """Our validators say `key must ...`: the key joins the path, so that the line starts with it."""
    found = re.match(r"([a-z_]\w*(?:\.\w+)*) (must .*)", text, flags=re.DOTALL)
    if found and found[1].split(".")[0] in _fields(at):
        return (*at.path, *found[1].split(".")), found[2]
    return at.path, text


def _fields(at: KeyLocation) -> set[str]:
    return {name for section in shape.sections(at.annotation) for name in section.model_fields}


def _wanted(at: KeyLocation) -> str:
    kinds = _kinds(at.annotation)
    return f"a section of keys with kind {shape.enumerated(kinds)}" if len(kinds) > 1 else shape.expected(at.annotation)


def _kinds(annotation: Any) -> list[str]:
    return [shape.kind_of(section) for section in shape.sections(annotation) if "kind" in section.model_fields]


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {close[0]}?" if close else ""


def _nearest_word(got: Any, at: KeyLocation) -> str:
    return _nearest(got, shape.choices(at.annotation)) if isinstance(got, str) else ""


def _suggestion(at: KeyLocation, root: type[Section]) -> str:
    """The nearest key of the same section; else the places where a key of exactly that name belongs."""
    *_, wrong = at.path
    near = _nearest(wrong, list(at.section.model_fields))
    if near:
        return near
    elsewhere = list(dict.fromkeys(_plain(key.path) for key in shape.keys(root) if key.path.endswith(f".{wrong}")))
    return (
        f"; {wrong} belongs under {shape.enumerated([path.rpartition('.')[0] for path in elsewhere])}"
        if elsewhere
        else ""
    )


def _plain(path: str) -> str:
    return re.sub(r"<\w+>", "", path)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return f"a section of {len(value)} keys"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
