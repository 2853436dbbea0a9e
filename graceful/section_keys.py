"""Sections as a tree of keys, for error messages and `graceful schema`: what may stand where. Every process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from graceful.section_docs import docstrings
from graceful.sections import Section

WORDS = {str: "text", int: "an integer", float: "a number", bool: "true or false", dict: "a mapping", NoneType: "null"}


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key that a spec may hold.

    Attributes:
        path: Dotted path; `[]` stands for an item of a list, `<kind>` for one member of a union.
        expects: What may stand there, in words.
        default: Its default as it is written in YAML; None where the key is required; empty where a section follows.
        doc: The docstring of the field.
    """

    path: str
    expects: str
    default: str | None
    doc: str


def keys(annotation: Any, path: str = "") -> Iterator[Key]:
    """Walk every key below an annotation, in the order in which the sections write them."""
    alternatives = sections(annotation)
    for section in alternatives:
        prefix = f"{path}<{kind_of(section)}>" if len(alternatives) > 1 else path
        if len(alternatives) > 1:
            yield Key(path=prefix, expects=f"kind: {kind_of(section)}", default="", doc=_first_line(section))
        for name, field in section.model_fields.items():
            if name == "kind":
                continue
            text = field.description or docstrings(section).get(name, "")
            yield from _field(field, ".".join(filter(None, (prefix, name))), text)


def _field(field: FieldInfo, path: str, text: str) -> Iterator[Key]:
    inner = item(field.annotation)
    default = None if field.is_required() else _default(field.get_default(call_default_factory=True))
    alternatives = sections(field.annotation)
    doc = text or (_first_line(alternatives[0]) if len(alternatives) == 1 else "")
    yield Key(path=path, expects=expected(annotation_of(field)), default=default, doc=" ".join(doc.split()))
    yield from keys(field.annotation if inner is None else inner, f"{path}[]" if inner is not None else path)


def _first_line(section: type[Section]) -> str:
    return next(iter((section.__doc__ or "").strip().splitlines()), "")


def annotation_of(field: FieldInfo) -> Any:
    """Return the annotation of a field with its bounds, which pydantic keeps apart from it."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union, flattened; an annotation that is none is its own only member."""
    origin = get_origin(annotation)
    if origin is Annotated and get_origin(get_args(annotation)[0]) in (Union, UnionType):
        return members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return tuple(member for part in get_args(annotation) for member in members(part))
    return (annotation,)


def sections(annotation: Any) -> tuple[type[Section], ...]:
    """Return the sections among the alternatives: one for a plain section, several for a union with `kind`."""
    types = (_unannotated(candidate) for candidate in members(annotation))
    return tuple(candidate for candidate in types if isinstance(candidate, type) and issubclass(candidate, Section))


def item(annotation: Any) -> Any | None:
    """Return the type of a list's items; None where no list may stand."""
    for member in map(_unannotated, members(annotation)):
        if get_origin(member) is tuple:
            return get_args(member)[0]
    return None


def value(annotation: Any) -> Any | None:
    """Return the type of a mapping's values; None where no mapping of free keys may stand."""
    for member in map(_unannotated, members(annotation)):
        if get_origin(member) is dict:
            return get_args(member)[1]
    return None


def child(annotation: Any, part: str) -> Any:
    """Return the annotation below: the field of that name, or the member of a union whose `kind` it is.

    Raises:
        KeyError: Neither.
    """
    inner = item(annotation)
    alternatives = sections(annotation if inner is None else inner)
    for section in alternatives:
        if len(alternatives) > 1 and kind_of(section) == part:
            return section
        if part in section.model_fields:
            return annotation_of(section.model_fields[part])
    raise KeyError(part)


def kind_of(section: type[Section]) -> str:
    """Return the value of `kind` that selects a section."""
    return str(section.model_fields["kind"].default)


def expected(annotation: Any) -> str:
    """Say in words what may stand there: `an integer, at least 1, or null`."""
    return enumerated([text for member in members(annotation) for text in _descriptions(member)])


def choices(annotation: Any) -> list[str]:
    """Return the words among which a value is chosen; empty where any text or number may stand."""
    return [word for member in members(annotation) for word in _choices(_unannotated(member))]


def _choices(type_: Any) -> list[str]:
    if get_origin(type_) is Literal:
        return [str(value) for value in get_args(type_)]
    if isinstance(type_, type) and issubclass(type_, Enum):
        return [str(value.value) for value in type_]
    return []


def _descriptions(annotation: Any) -> list[str]:
    type_ = _unannotated(annotation)
    if literals := _choices(type_):
        return literals
    if get_origin(type_) is tuple:
        suffix = " (at least one)" if any(isinstance(note, MinLen) for note in _notes(annotation)) else ""
        return [f"a list of {_items(get_args(type_)[0])}{suffix}"]
    if isinstance(type_, type) and issubclass(type_, Section):
        return [f"kind {kind_of(type_)}" if "kind" in type_.model_fields else "a section of keys"]
    bounds = _bounds(annotation)
    return [f"{WORDS.get(get_origin(type_) or type_, 'a value')}{' ' if bounds else ''}{bounds}"]


def _items(annotation: Any) -> str:
    alternatives = sections(annotation)
    if not alternatives:
        return expected(annotation)
    kinds = [kind_of(section) for section in alternatives if "kind" in section.model_fields]
    return f"sections with kind {enumerated(kinds)}" if kinds else "sections"


def _unannotated(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _notes(annotation: Any) -> Iterator[Any]:
    for note in getattr(annotation, "__metadata__", ()):
        if isinstance(note, FieldInfo):
            yield from note.metadata
        elif isinstance(note, Interval):
            yield from note
        else:
            yield note


def _bounds(annotation: Any) -> str:
    low: float | None = None
    high: float | None = None
    opening, closing = "[", "]"
    for note in _notes(annotation):
        if isinstance(note, Ge | Gt):
            opening, low = ("[", float(str(note.ge))) if isinstance(note, Ge) else ("(", float(str(note.gt)))
        elif isinstance(note, Le | Lt):
            closing, high = ("]", float(str(note.le))) if isinstance(note, Le) else (")", float(str(note.lt)))
    if high is not None:
        return f"in {opening}{low or 0.0:g}, {high:.10g}{closing}"
    return "" if low is None else f"{'of at least' if opening == '[' else 'above'} {low:g}"


def enumerated(words: Sequence[str]) -> str:
    """Join words for people: `a, b or c`; repeated words once."""
    unique = list(dict.fromkeys(words))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} or {unique[-1]}"


def _default(value: Any) -> str | None:
    if value is PydanticUndefined:
        return None
    if isinstance(value, Section):
        return f"kind {kind_of(type(value))}" if "kind" in type(value).model_fields else ""
    if isinstance(value, tuple):
        return f"[{', '.join(_item_text(element) for element in value)}]"
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    if isinstance(value, int | float):
        return f"{value:g}" if abs(value) < 1e5 else f"{value:.0f}"
    return str(value.value if isinstance(value, Enum) else value) or '""'


def _item_text(value: Any) -> str:
    if isinstance(value, Section):
        return "{" + ", ".join(f"{k}: {v}" for k, v in value.model_dump(mode="json", exclude_unset=True).items()) + "}"
    return str(value)
