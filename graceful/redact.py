"""Hide what looks like a secret before it is shown or recorded, and say where it stands. Runs in every process.

Every function takes time that grows linearly with its text. What is hidden: values under the names of secrets, user and
password in an address, the path of a webhook, tokens of known formats, and values that this process knows to be secret
(`remember`, and the environment's).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = "***"
SHORTEST = 6
"""Characters of a known secret below which it is not looked for in texts: it would be found everywhere."""
LONGEST_WORD = 16
"""The same for one of small letters alone, which may be a word, such as the name of this program."""
_NAME = re.compile(
    r"(?i)secret|passw(?:or)?d|passphrase|credential|authorization|(?<![a-z])pwd(?![a-z])"
    r"|(?:api|access|private|account)[_-]?key"
    r"|(?<!(?:bos|cls|eos|pad|per|sep|unk)[_-])(?<!mask[_-])token(?![a-z])"  # tokens of a text are no secrets
)
_SURE = re.compile(r"(?i)(?:secret|passw(?:or)?d|passphrase|pwd|(?:api|access|private|account)[_-]?key)$")
"""Names under which even a number is a secret; under others, such as `token_size`, it is a setting."""
_HARMLESS = re.compile(
    r"(?i)(?:[_-]?(?:file|path|dir|folder|ref)|secret_?name|application_credentials|automountserviceaccounttoken"
    r"|(?:env_from|pull|imagepull)_?secrets)$"
)
_WEBHOOK = re.compile(r"(?i)web_?hook")
_WEBHOOK_ADDRESS = re.compile(r"(?i)(?:^|[./])(?:web)?hooks?(?:[./]|$)|/(?:web)?hooks?[/?]|^api\.telegram\.org/bot")
_FORMATS = (
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}+"),
    re.compile(r"\bhf_[A-Za-z0-9]{20,}+"),
    re.compile(r"(?<![\w.-])ey[\w-]{10,}+\.ey[\w-]{10,}+\.[\w-]++"),  # a signed token
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"),
    re.compile(r"(?i)(?<=\bbearer )[\w.~+/=-]{8,}+"),
)
_QUERY = re.compile(r"(?P<key>[?&;](?P<name>[\w.-]{1,64}+)=)[^&;\s\"'<>]++")
_QUERY_NAME = re.compile(r"(?i)^(?:sig|signature|key|code|auth|x-amz-(?:signature|credential))$")
_ASSIGNMENT = re.compile(r"(?<![\w.-])(?P<name>[\w.-]++)(?P<gap>[\"']?+\s*+[=:]\s*+|\s++)")
_PARAMETER = re.compile(r"[^\s\"'&]*+")
_WORD = re.compile(r"[^\s\"']*+")
_LINE = re.compile(r"[^\n]*+")
_LINE_START = re.compile(r"(?:^|\n)[ -]*$")
_CLOSING = ",;}])"
_DELIMITER = re.compile(r"[/?#\\]")
_PLAIN = {"null", "none", "true", "false", "token", "disabled", HIDDEN}
_known: set[str] = set()


def secrets(value: Any, path: str = "") -> Iterator[str]:
    """Paths of the values that look like secrets, e.g. `spec.entrypoint`."""
    for where, part, name in _leaves(value, path):
        if hidden(part, name) != part:
            yield where


def hidden(value: Any, name: str = "") -> Any:
    """The same document with *** in place of what looks like a secret, in names, URLs and free text."""
    if isinstance(value, Mapping):
        if value.get("kind") == "Secret":
            parts = {key: dict.fromkeys(value.get(key) or {}, HIDDEN) for key in ("data", "stringData") if key in value}
            return {**value, **parts}
        return {key: hidden(part, _named(value, key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(part, name) for part in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return HIDDEN if _SURE.search(name) else value
    return shown(value, name) if isinstance(value, str) else value


def shown(text: str, name: str = "") -> str:
    """One text of a document, under the name of its key or variable."""
    if not text or text.lower() in _PLAIN:
        return text
    if _is_secret(name):
        return HIDDEN
    if _WEBHOOK.search(name):
        return webhook(text)
    return _masked(text, prose=False)


def message(text: str) -> str:
    """A line for people, in which `token: ` may be followed by words; what is known to be secret is hidden too."""
    return _without_known(_masked(text, prose=True))


def record(text: str) -> str:
    """A text of many lines that is kept, such as a traceback: as `shown`, without what is known to be secret."""
    return _without_known(_masked(text, prose=False))


def address(url: str) -> str:
    """What is meant as an address, for people: *** in place of all up to its last @, also where it has no scheme."""
    start = url.find("://") + len("://") if "://" in url else 0
    _, at, host = url[start:].rpartition("@")
    return message(f"{url[:start]}{HIDDEN}@{host}" if at else url)


def origin(url: str) -> str:
    """Scheme, host and port of a web address: its path is often the secret of a webhook."""
    scheme, separator, rest = _without_user(url).partition("://")
    return f"{scheme}{separator}{_DELIMITER.split(rest, maxsplit=1)[0]}" if separator else HIDDEN


def webhook(url: str) -> str:
    """A webhook's address for people: *** in place of all that follows the host."""
    start = origin(url)
    return start if _without_user(url).rstrip("/") == start else f"{start}/{HIDDEN}"


def holds_password(url: str) -> bool:
    """Whether an address has a user or a password in it."""
    return _without_user(url) != url


def remember(*values: str) -> None:
    """Hide these values from now on in every message and record of this process; of an address, its parts too."""
    for value in map(str.strip, values):
        _, separator, rest = value.partition("://")
        user, _, rest = rest.rpartition("@")
        parts = [user, user.partition(":")[2], *re.split(r"[/?#&=]", rest)[1:]] if separator else []
        _known.update(part for part in (value, *parts) if part.lower() not in _PLAIN)


def remember_password(url: str) -> None:
    """Hide user and password of an address from now on, and nothing else of it."""
    if holds_password(url):
        user = url.partition("://")[2].rpartition("@")[0]
        remember(user, user.partition(":")[2])


def command(arguments: list[str]) -> list[str]:
    """A command line without the values of `--set`, which are hidden from now on."""
    kept, sets = [], False
    for argument in arguments:
        key, equals, value = argument.removeprefix("--set=").partition("=")
        if (sets or argument.startswith("--set=")) and equals:
            remember(value, value.strip("\"' "))
            kept.append(f"{'' if sets else '--set='}{key}={HIDDEN}")
        else:
            kept.append(argument)
        sets = argument == "--set"
    return kept


def _is_secret(name: str) -> bool:
    return _NAME.search(name) is not None and _HARMLESS.search(name) is None


def _without_known(text: str) -> str:
    known = dict.fromkeys(_known, HIDDEN)
    for name, value in os.environ.items():
        if name == "PWD":  # the shell's working directory
            continue
        if _is_secret(name) and not name.endswith("_ID") and value.lower() not in _PLAIN:
            known[value.strip()] = HIDDEN
        elif _WEBHOOK.search(name):
            known[value.strip()] = webhook(value.strip())
    for value in sorted(known, key=len, reverse=True):
        if len(value) >= (LONGEST_WORD if value.isalpha() and value.islower() else SHORTEST):
            text = text.replace(value, known[value])
    return text


def _masked(text: str, *, prose: bool) -> str:
    """Formats first, then addresses, word by word, then `name = value`."""
    for pattern in _FORMATS:
        text = pattern.sub(HIDDEN, text)
    if "://" in text:
        text = re.sub(r"\S+", lambda word: _address(word[0]), text)
    return _assignments(text, prose=prose)


def _address(word: str) -> str:
    """A word without the user, the secret parameters and, of a webhook, the path of the address in it."""
    head, separator, rest = _without_user(word).partition("://")
    if not separator:
        return word
    rest = _QUERY.sub(_parameter, rest)
    if _WEBHOOK_ADDRESS.search(rest.partition("@")[2] or rest):
        address = re.split(r"[\"'<>]", rest, maxsplit=1)[0]
        host = _DELIMITER.split(address, maxsplit=1)[0]
        if address.rstrip("/") not in (host, f"{host}/{HIDDEN}"):
            rest = f"{host}/{HIDDEN}{rest[len(address) :]}"
    return f"{head}{separator}{rest}"


def _without_user(url: str) -> str:
    """Hide all up to the last @ of an address, if a user stands there: a password may hold / ? # and @ itself."""
    head, separator, rest = url.partition("://")
    before, at, after = rest.rpartition("@")
    delimiter = _DELIMITER.search(before)
    first = before if delimiter is None else before[: delimiter.start()]
    if not separator or not at or (delimiter is not None and ":" not in first and "@" not in first):
        return url  # s3://bucket/photos@2x has no user
    return f"{head}{separator}{HIDDEN}@{after}"


def _parameter(match: re.Match[str]) -> str:
    secret = _is_secret(match["name"]) or _QUERY_NAME.match(match["name"])
    return f"{match['key']}{HIDDEN}" if secret else match[0]


def _assignments(text: str, *, prose: bool) -> str:
    parts, done, place = [], 0, 0
    while (match := _ASSIGNMENT.search(text, place)) is not None:
        place = match.end()
        secret, hook = _is_secret(match["name"]), _WEBHOOK.search(match["name"])
        if not secret and not hook:
            continue
        start, end = _value(text, match, prose=prose)
        value = text[start:end]
        if value.lower() in _PLAIN or not _is_value(match, value, prose=prose):
            continue
        if secret or "://" in value:
            parts += [text[done:start], HIDDEN if secret else webhook(value)]
            done = end
        place = max(place, end)
    return "".join([*parts, text[done:]])


def _is_value(match: re.Match[str], value: str, *, prose: bool) -> bool:
    """Whether what follows a name is its value, not the next word of a sentence."""
    gap = match["gap"]
    if "=" in gap:
        return bool(value)
    if ":" not in gap:
        return match["name"].startswith("--") and bool(value) and not value.startswith("-")
    return len(value) >= 4 and not (prose and gap == ": ")


def _value(text: str, match: re.Match[str], *, prose: bool) -> tuple[int, int]:
    """Begin and end of a value: to the closing quote, else to the end of the word, or of its line in YAML."""
    start, sign = match.end(), next((sign for sign in "=:" if sign in match["gap"]), "")
    quote = text[start : start + 1]
    if quote and quote in "\"'":
        end = text.find(quote, start + 1)
        return start + 1, len(text) if end < 0 else end
    begins = _LINE_START.search(text[max(0, match.start() - 40) : match.start()])
    whole = sign == ":" and begins and not prose
    pattern = _LINE if whole else _PARAMETER if sign == "=" and _is_secret(match["name"]) else _WORD
    found = pattern.match(text, start)
    assert found is not None
    return start, start + len(found[0].rstrip(_CLOSING))


def _named(document: Mapping[str, Any], key: Any) -> str:
    """The name of a value: its key, or what its `name` says where name and value stand side by side."""
    pair = isinstance(document.get("name"), str) and isinstance(document.get("value"), str)
    return str(document["name"]) if pair and key == "value" else str(key)


def _leaves(value: Any, path: str, name: str = "") -> Iterator[tuple[str, Any, str]]:
    """(path, value, name) of every leaf of a document; a list item is known by its `name`, if it has one."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, f"{path}.{key}" if path else str(key), _named(value, key))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            known = part.get("name") if isinstance(part, Mapping) else None
            yield from _leaves(part, f"{path}.{known if isinstance(known, str) else number}", name)
    else:
        yield path, value, name
