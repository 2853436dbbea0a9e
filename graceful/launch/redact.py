"""Hide what looks like a secret before a document is shown, and say where it stands. Pure functions. Client."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = "***"
_NAME = re.compile(r"(?i)(secret|passw(or)?d|token|credential|api_?key|access_?key|private_?key)")
_HARMLESS = re.compile(
    r"(?i)(secretref|secretkeyref|token_?path|token_?file|automountserviceaccounttoken|secret_?name)$"
)
_PATTERNS = (
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),  # user:password in a URL
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}\b"),
    re.compile(r"\bhf_[A-Za-z0-9]{20,}\b"),
    re.compile(r"\bey[A-Za-z0-9_-]{10,}\.ey[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+"),  # a signed token
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"),
    re.compile(r"(?i)(?<=bearer )[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(
        r"(?i)(?<![a-z0-9])(?:[a-z0-9_]*(?:secret|passw(?:or)?d|token|access_?key)[a-z0-9_]*)(?P<gap>[\"']?\s*[=:]\s*[\"']?)"
        r"(?P<value>[^\s\"',;}&]{4,})"
    ),
)
_WORDS_OF_OURS = {"null", "none", "true", "false", "token", "disabled", HIDDEN}


def secrets(value: Any, path: str = "") -> Iterator[str]:
    """Paths of the values that look like secrets, e.g. `spec.entrypoint`."""
    for where, text, name in _texts(value, path):
        if shown(text, name) != text:
            yield where


def hidden(value: Any, name: str = "") -> Any:
    """The same document with *** in place of what looks like a secret, in names, URLs and free text."""
    if isinstance(value, Mapping):
        if value.get("kind") == "Secret":
            parts = {key: dict.fromkeys(value.get(key) or {}, HIDDEN) for key in ("data", "stringData") if key in value}
            return {**value, **parts}
        pair = isinstance(value.get("name"), str) and isinstance(value.get("value"), str)
        return {
            key: hidden(part, str(value["name"]) if pair and key == "value" else str(key))
            for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [hidden(part, name) for part in value]
    return shown(value, name) if isinstance(value, str) else value


def shown(text: str, name: str = "") -> str:
    """One text, under the name of its key or variable."""
    if text.lower() in _WORDS_OF_OURS or not text:
        return text
    if _NAME.search(name) and not _HARMLESS.search(name) and not text.startswith("/"):
        return HIDDEN
    for pattern in _PATTERNS:
        text = pattern.sub(_masked, text)
    return text


def _masked(found: re.Match[str]) -> str:
    value = found.groupdict().get("value")
    if value is None:
        return HIDDEN
    return found[0] if value.lower() in _WORDS_OF_OURS else found[0][: found.start("value") - found.start()] + HIDDEN


def _texts(value: Any, path: str, name: str = "") -> Iterator[tuple[str, str, str]]:
    """(path, text, name) of every text in a document; a list item is known by its `name`, if it has one."""
    if isinstance(value, Mapping):
        pair = isinstance(value.get("name"), str) and isinstance(value.get("value"), str)
        for key, part in value.items():
            at = f"{path}.{key}" if path else str(key)
            yield from _texts(part, at, str(value["name"]) if pair and key == "value" else str(key))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            known = part.get("name") if isinstance(part, Mapping) else None
            yield from _texts(part, f"{path}.{known if isinstance(known, str) else number}", name)
    elif isinstance(value, str):
        yield path, value, name
