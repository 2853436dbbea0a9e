"""Values of a sample by the fields that a spec names: `cls`, or `json:key` for a value inside. Driver and workers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

Value = str | int | float | bool
LONGEST_NAME = 1024
"""Characters of a label, an id, a group or a split."""


def ending_of(field: str) -> str:
    """Return the ending of the member in which a field is, in lower case."""
    return field.partition(":")[0].lower()


def value_of(field: str, members: Mapping[str, bytes]) -> Value:
    """Return the value of a field.

    Args:
        field: As the spec names it.
        members: Bytes of the members that the sample has, by ending.

    Raises:
        ValueError: There is none; what is wrong, as the rest of a sentence about the sample.
    """
    ending, _, path = field.partition(":")
    ending = ending.lower()
    if ending not in members:
        raise ValueError(f"has no member .{ending}")
    data = members[ending]
    if not data.strip():
        raise ValueError(f"has an empty member .{ending}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"has a member .{ending} that is not UTF-8") from e
    if not path:
        return text.strip()
    return _inside(text, path, ending)


def name_of(field: str, members: Mapping[str, bytes]) -> str:
    """Return the value of a field that names something: a text in one piece, or a whole number as text.

    Raises:
        ValueError: As `value_of`; or it is none.
    """
    value = value_of(field, members)
    if isinstance(value, float):
        raise ValueError(f"has a number with a fraction as {field}, which must be text or a whole number")
    name = str(value)
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise ValueError(f"has more than one line or {LONGEST_NAME} characters as {field}, which must be a name")
    return name


def text_of(field: str, members: Mapping[str, bytes]) -> str:
    """Return the value of a field that is a text.

    Raises:
        ValueError: As `value_of`; or it is another value.
    """
    value = value_of(field, members)
    if not isinstance(value, str):
        raise ValueError(f"has {value!r:.40} as {field}, which must be text")
    return value


def number_of(field: str, members: Mapping[str, bytes]) -> float:
    """Return the value of a field that is a number.

    Raises:
        ValueError: As `value_of`; or it is not a finite number.
    """
    value = value_of(field, members)
    try:
        number = float(value)
    except ValueError as e:
        raise ValueError(f"has {value!r:.40} as {field}, which must be a number") from e
    if not math.isfinite(number):
        raise ValueError(f"has {value!r:.40} as {field}, which must be a finite number")
    return number


def _inside(text: str, path: str, ending: str) -> Value:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"has a member .{ending} that is not JSON") from e
    for key in [path] if isinstance(value, dict) and path in value else path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, str):
        value = value.strip()
        try:
            value.encode()
        except UnicodeEncodeError as e:
            raise ValueError(f"has a text at {ending}:{path} that is not UTF-8") from e
    if value is None or value == "":
        raise ValueError(f"has no value at {ending}:{path}")
    if not isinstance(value, str | int | float | bool):
        raise ValueError(f"has a list or an object at {ending}:{path}, which must be one value")
    return value
