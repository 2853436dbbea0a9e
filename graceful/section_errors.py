"""Turn errors of pydantic into one line: key path, file, expected value, given value. Every process."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from graceful import redact, section_keys
from graceful.sections import NAME, VERSION, Section

PATTERNS = {
    NAME: "lower case letters, digits and inner hyphens, at most 63",
    VERSION: "MODEL@ALIAS, MODEL:NUMBER or MODEL:NAME, such as glyphs@champion",
}
"""What the patterns of keys want, in words."""
LONGEST = 60
"""Characters of a wrong value that a message repeats."""


@dataclass(frozen=True, kw_only=True)
class KeyLocation:
    """The location of an error in the tree of keys.

    Attributes:
        path: As people write it: no union labels.
        annotation: What may stand there, bounds included; None for an unknown key.
        section: The section that holds the last key.
    """

    path: tuple[str, ...]
    annotation: Any
    section: type[Section]


@dataclass(frozen=True, kw_only=True)
class Document:
    """A kind of document that people write.

    Attributes:
        root: Its section.
        name: What it is called.
        help: Where its keys are listed, for people who wrote an unknown one.
        patterns: What the patterns of its keys want, in words, besides `PATTERNS`.
        unavailable: Kinds of sections that cannot be used, with the reason.
    """

    root: type[Section]
    name: str
    help: str = ""
    patterns: Mapping[str, str] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)


def explain(error: ValidationError, document: Document, where: str) -> str:
    """Return one line for the first problem of a document of people, and how many other keys have one."""
    problems = sorted(error.errors(include_url=False), key=_is_consequence)
    locations = [locate(document.root, problem["loc"]) for problem in problems]
    key, text = _problem(problems[0], locations[0], document)
    path = ".".join(part if part.isprintable() and part == part.strip() and part else repr(part) for part in key)
    others = len({location.path for location in locations}) - 1
    return f"{path or document.name} in {where}: {text}{_more(others)}"


def summary(error: ValidationError, name: str, *, at: str = "") -> str:
    """Return the first problem of a file that graceful wrote, and how many others there are: only a bug or damage
    makes one, so pydantic's words will do.

    Args:
        error: What was found.
        name: How the file is called, where the problem is the whole of it.
        at: Key of the value that was read.
    """
    first, *others = error.errors(include_url=False)
    path = ".".join([*filter(None, [at]), *map(str, first["loc"])]) or name
    return f"{path}: {first['msg'].lower()}{_more(len(others))}"


def _more(count: int) -> str:
    return f" (and {count} more)" if count else ""


def _is_consequence(problem: ErrorDetails) -> bool:
    """Return whether a problem may follow from a misspelt key, which is reported first."""
    return problem["type"] != "extra_forbidden"


def locate(root: type[Section], location: tuple[int | str, ...]) -> KeyLocation:
    """Follow pydantic's location through the tree, dropping the labels it adds for unions."""
    path: list[str] = []
    annotation: Any = root
    holder = root
    for part in location:
        alternatives = section_keys.sections(annotation)
        if len(alternatives) > 1 and isinstance(part, str):
            annotation = next(
                (section for section in alternatives if section_keys.kind_of(section) == part), annotation
            )
        elif len(alternatives) == 1:
            holder = alternatives[0]
            key_field = holder.model_fields.get(str(part))
            annotation = section_keys.annotation_of(key_field) if key_field else None
            path.append(str(part))
        elif isinstance(part, int):
            annotation = section_keys.item(annotation)
            path.append(str(part))
        elif (value := section_keys.value(annotation)) is not None:
            annotation = value
            path.append(part)
    return KeyLocation(path=tuple(path), annotation=annotation, section=holder)


LocatedMessage = tuple[tuple[str, ...], str]
"""Path of the key that people must change, and the message about it."""


def _problem(problem: ErrorDetails, location: KeyLocation, document: Document) -> LocatedMessage:
    match problem["type"]:
        case "extra_forbidden":
            return location.path, f"unknown key{_suggestion(location, document.root)}{document.help}"
        case "missing":
            return location.path, f"required and missing; must be {section_keys.expected(location.annotation)}"
        case "value_error":
            return _validator_message(location, problem["msg"].removeprefix("Value error, "))
        case "union_tag_not_found" | "union_tag_invalid":
            return _kind(problem, location, document.unavailable)
    return location.path, _value(problem, location, {**PATTERNS, **document.patterns})


def _kind(problem: ErrorDetails, location: KeyLocation, unavailable: Mapping[str, str]) -> LocatedMessage:
    kinds = _kinds(location.annotation)
    if problem["type"] == "union_tag_not_found":
        return (*location.path, "kind"), f"required and missing; must be {section_keys.enumerated(kinds)}"
    kind = str(problem["ctx"]["tag"])
    if kind in unavailable:
        return (*location.path, "kind"), unavailable[kind]
    return (*location.path, "kind"), f"must be {section_keys.enumerated(kinds)}, got {kind!r}{_nearest(kind, kinds)}"


def _value(problem: ErrorDetails, location: KeyLocation, patterns: Mapping[str, str]) -> str:
    value = problem["input"]
    match problem["type"]:
        case "finite_number":
            expected, remedy = "a finite number", ""
        case "string_pattern_mismatch":
            pattern = str(problem["ctx"]["pattern"])
            expected, remedy = patterns.get(pattern, f"text that matches {pattern}"), ""
        case "string_type":
            expected, remedy = "text", "" if isinstance(value, Mapping | list | None) else "; put it in quotes"
        case _:
            expected, remedy = _expected(location), _nearest_word(value, location)
    return f"must be {expected}, got {_shown(redact.hidden(value, location.path[-1] if location.path else ''))}{remedy}"


def _validator_message(location: KeyLocation, text: str) -> LocatedMessage:
    """Return path and text of `key must ...`, as our validators write: the key joins the path."""
    match = re.match(r"([a-z_]\w*(?:\.\w+)*) (must .*)", text, flags=re.DOTALL)
    if match and match[1].split(".")[0] in _fields(location):
        return (*location.path, *match[1].split(".")), match[2]
    return location.path, text


def _fields(location: KeyLocation) -> set[str]:
    return {name for section in section_keys.sections(location.annotation) for name in section.model_fields}


def _expected(location: KeyLocation) -> str:
    kinds = _kinds(location.annotation)
    return (
        f"a section of keys with kind {section_keys.enumerated(kinds)}"
        if len(kinds) > 1
        else section_keys.expected(location.annotation)
    )


def _kinds(annotation: Any) -> list[str]:
    return [
        section_keys.kind_of(section) for section in section_keys.sections(annotation) if "kind" in section.model_fields
    ]


def _nearest(word: str, candidates: list[str]) -> str:
    matches = difflib.get_close_matches(word, candidates, n=1)
    return f", did you mean {matches[0]}?" if matches else ""


def _nearest_word(value: Any, location: KeyLocation) -> str:
    return _nearest(value, section_keys.choices(location.annotation)) if isinstance(value, str) else ""


def _suggestion(location: KeyLocation, root: type[Section]) -> str:
    """Return the nearest key of the same section; else the sections where a key of exactly that name belongs."""
    *_, unknown = location.path
    suggestion = _nearest(unknown, list(location.section.model_fields))
    if suggestion:
        return suggestion
    elsewhere = list(
        dict.fromkeys(_plain(key.path) for key in section_keys.keys(root) if key.path.endswith(f".{unknown}"))
    )
    return (
        f"; {unknown} belongs under {section_keys.enumerated([path.rpartition('.')[0] for path in elsewhere])}"
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
