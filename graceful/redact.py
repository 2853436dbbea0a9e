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
from urllib.parse import unquote

HIDDEN = "***"
SHORTEST = 6
"""Characters of a known secret below which it is not looked for in texts: it would be found everywhere."""
LONGEST_WORD = 16
"""The same for one of small letters alone, which may be a word, such as the name of this program."""
SHORTEST_MIXED = 8
"""Characters from which a word of letters and digits behind the name of a secret is its value, also in sentences."""
SHORTEST_RANDOM = 16
"""Characters from which letters and digits without order are taken for a secret."""
_NAME = re.compile(
    r"(?i)secret|passw(?:or)?d|passphrase|credential|authorization|(?<![a-z])pwd(?![a-z])"
    r"|(?:api|access|private|account)[_-]?key"
    r"|(?<!(?:bos|cls|eos|pad|per|sep|unk)[_-])(?<!mask[_-])token(?![a-z])"  # tokens of a text are not secrets
)
_SURE = re.compile(r"(?i)(?:secret|passw(?:or)?d|passphrase|pwd|(?:api|access|private|account)[_-]?key)$")
"""Names under which even a number is a secret; under others, such as `token_size`, it is a setting."""
_CERTAIN = re.compile(
    r"(?i)(?:^|[_-])(?:passw(?:or)?d|passphrase|pwd|api[_-]?key|secret[_-](?:access[_-])?key|client[_-]secret)$|^secret$"
)
"""Names under which everything is a secret."""
_HARMLESS = re.compile(
    r"(?i)(?:[_-]?(?:file|path|dir|folder|ref)|[_-](?:env|column|type|name)|secret_?name|application_credentials|automountserviceaccounttoken"
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
    # user and password in base64, not the next word of a sentence
    re.compile(r"(?<=\b(?i:basic) )(?=[A-Za-z+/_-]*+[0-9=]|[A-Z]*+[a-z+/_-]++[A-Z])[\w+/=-]{6,}+"),
)
_QUERY = re.compile(r"(?P<key>[?&;](?P<name>[\w.-]{1,64}+)=)(?P<value>[^&;\s\"'<>]++)")
_QUERY_NAME = re.compile(
    r"(?i)^(?:sig|signature|key|code|auth|pw|pass|pwd|odbc_connect|x-amz-(?:signature|credential))$"
)
_ASSIGNMENT = re.compile(r"(?<![\w.-])(?P<name>[\w.-]++)(?P<gap>(?:\\*+[\"'])?+\s*+[=:]\s*+|\s++)")
_PARAMETER = re.compile(r"[^\s\"'&]*+")
_WORD = re.compile(r"[^\s\"']*+")
_SCHEME_AND_WORD = re.compile(r"[^\s\"']*+(?:(?<=[A-Za-z]) [^\s\"']++)?+")
"""Scheme and word of a header such as `Authorization: Token abc`."""
_LINE = re.compile(r"[^\n]*+")
_LINE_START = re.compile(r"(?:^|\n)[ -]*$")
_CLOSING = ",;}])"
_DELIMITER = re.compile(r"[/?#\\]")
_SEPARATOR = re.compile(r"([\"'<>,;|(\[{])(?=[A-Za-z][A-Za-z0-9+.-]{0,31}+://)")
"""Between two addresses in one word."""
_QUOTE = re.compile(r"(?<!\\)(?P<escape>\\*+)(?P<quote>[\"'])")
_CHANGE = re.compile(r"(?i)(?<=[a-z])[0-9]|(?<=[0-9])[a-z]")
_PLAIN = {"null", "none", "true", "false", "token", "disabled", HIDDEN}
_known: set[str] = set()


def secrets(value: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of the values that look like secrets, e.g. `spec.entrypoint`."""
    for where, part, name in _leaves(value, path):
        if hidden(part, name) != part:
            yield where


def certain(value: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of the values that are secrets by what they are, or by a name that means nothing else.

    `token`, `key` and `secret` are also words of a field: token_mixer, key_column.
    """
    for where, part, name in _leaves(value, path):
        plain = part is None or isinstance(part, bool) or str(part).lower() in {"", *_PLAIN}
        if plain or (isinstance(part, float | int) and not _CERTAIN.search(name)):
            continue
        text = str(part)
        masked = _masked(text, prose=True) != text or ("://" in text and _WEBHOOK.search(name))
        if masked or _CERTAIN.search(name) or (_is_secret(name) and looks_random(text)):
            yield where


def looks_random(text: str) -> bool:
    """Return whether letters and digits follow each other without order, as in a token and not in a name."""
    if len(text) < SHORTEST_RANDOM or any(sign.isspace() for sign in text) or "://" in text:
        return False
    kinds = (str.isupper, str.islower, str.isdigit)
    return len(_CHANGE.findall(text)) >= 4 or (len(text) >= 20 and all(any(map(kind, text)) for kind in kinds))


def hidden(value: Any, name: str = "") -> Any:
    """Return the same document with *** in place of what looks like a secret, in names, URLs and free text."""
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
    """Return one text of a document, under the name of its key or variable."""
    if not text or text.lower() in _PLAIN:
        return text
    if _is_secret(name):
        return HIDDEN
    if _WEBHOOK.search(name):
        return webhook(text)
    return _masked(text, prose=False)


def message(text: str) -> str:
    """Return a line for people, in which words may follow `token: `; what is known to be secret is hidden, too."""
    return _without_known(_masked(text, prose=True))


def record(text: str) -> str:
    """Return a text of many lines that is kept, such as a traceback: as `shown`, without what is known to be secret."""
    return _without_known(_masked(text, prose=False))


def address(url: str) -> str:
    """Return what is meant as an address, for people: *** in place of all up to its last @, also where it has no
    scheme."""
    start = url.find("://") + len("://") if "://" in url else 0
    _, at, host = url[start:].rpartition("@")
    return message(f"{url[:start]}{HIDDEN}@{host}" if at else url)


def origin(url: str) -> str:
    """Return the scheme, host and port of a web address: its path is often the secret of a webhook."""
    scheme, separator, rest = _without_user(url).partition("://")
    return f"{scheme}{separator}{_DELIMITER.split(rest, maxsplit=1)[0]}" if separator else HIDDEN


def webhook(url: str) -> str:
    """Return a webhook's address for people: *** in place of all that follows the host."""
    start = origin(url)
    return start if _without_user(url).rstrip("/") == start else f"{start}/{HIDDEN}"


def holds_password(url: str) -> bool:
    """Return whether an address has a user or a password in it."""
    return _without_user(url) != url


def remember(*values: str) -> None:
    """Hide these values from now on in every message and record of this process.

    Of an address also its user, its password, and its path with all that follows. Single parts of a path may be the
    names of models, so they are hidden alone only where they look random.
    """
    for value in map(str.strip, values):
        _, separator, rest = value.partition("://")
        user, _, rest = rest.rpartition("@")
        begin = _DELIMITER.search(rest)
        path = rest[begin.start() :] if separator and begin is not None else ""
        parts = re.split(r"[/?#&=]", path.strip("/"))
        known = [value, *(part for part in parts if looks_random(part)), *([path] if len(parts) > 1 else [])]
        if separator:
            known += [user, user.partition(":")[2]]
        _known.update(part for part in known if part.lower() not in _PLAIN)


def remember_password(url: str) -> None:
    """Hide user, password and secret parameters of an address from now on, and nothing else of it."""
    values = [match["value"] for match in _QUERY.finditer(url) if _parameter(match) != match[0]]
    if holds_password(url):
        user = url.partition("://")[2].rpartition("@")[0]
        values += [user, user.partition(":")[2]]
    remember(*values, *map(unquote, values))


def command(arguments: list[str]) -> list[str]:
    """Return a command line without the values of `--set`, which are hidden from now on."""
    redacted, sets = [], False
    for argument in arguments:
        key, equals, value = argument.removeprefix("--set=").partition("=")
        if (sets or argument.startswith("--set=")) and equals:
            remember(value, value.strip("\"' "))
            redacted.append(f"{'' if sets else '--set='}{key}={HIDDEN}")
        else:
            redacted.append(argument)
        sets = argument == "--set"
    return redacted


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
    """Hide known formats first, then addresses, word by word, then `name = value`."""
    for pattern in _FORMATS:
        text = pattern.sub(HIDDEN, text)
    if "://" in text:
        text = re.sub(r"\S+", lambda word: "".join(map(_address, _SEPARATOR.split(word[0]))), text)
    return _assignments(text, prose=prose)


def _address(word: str) -> str:
    """Return a word without the user, the secret parameters and, of a webhook, the path of the address in it.

    An address may stand in another one, behind its path or as a parameter.
    """
    end = word.rfind("@")
    starts = (match.end() for match in re.finditer("://", word))
    start = next((start for start in starts if _holds_user(word, start, end)), None)
    word = word if start is None else f"{word[:start]}{HIDDEN}{word[end:]}"
    head, separator, rest = word.partition("://")
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
    start, end = url.find("://") + len("://"), url.rfind("@")
    return f"{url[:start]}{HIDDEN}{url[end:]}" if "://" in url and _holds_user(url, start, end) else url


def _holds_user(text: str, start: int, end: int) -> bool:
    """Return whether a user stands between :// and the last @; in s3://bucket/photos@2x there is none."""
    delimiter = _DELIMITER.search(text, start, end)
    first = text[start : end if delimiter is None else delimiter.start()]
    return start <= end and (delimiter is None or ":" in first or "@" in first)


def _parameter(match: re.Match[str]) -> str:
    decoded = unquote(match["value"])
    secret = (
        _is_secret(match["name"]) or _QUERY_NAME.match(match["name"]) or _assignments(decoded, prose=False) != decoded
    )
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
    """Return whether what follows a name is its value, not the next word of a sentence."""
    gap = match["gap"]
    if "=" in gap:
        return bool(value)
    if ":" not in gap:
        return match["name"].startswith("--") and bool(value) and not value.startswith("-")
    if prose and gap == ": ":  # a header, rather than a sentence
        return len(value) >= SHORTEST_MIXED and _CHANGE.search(value) is not None
    return len(value) >= 4


def _value(text: str, match: re.Match[str], *, prose: bool) -> tuple[int, int]:
    """Begin and end of a value: to the closing quote, else to the end of the word, or of its line in YAML."""
    start, sign = match.end(), next((sign for sign in "=:" if sign in match["gap"]), "")
    opening = _QUOTE.match(text, start)
    if opening is not None:
        return opening.end(), _closing(text, opening)
    begins = _LINE_START.search(text[max(0, match.start() - 40) : match.start()])
    whole = sign == ":" and begins and not prose
    word = _SCHEME_AND_WORD if match["name"].lower().endswith("authorization") else _WORD
    pattern = _LINE if whole else _PARAMETER if sign == "=" and _is_secret(match["name"]) else word
    value = pattern.match(text, start)
    assert value is not None
    return start, start + len(value[0].rstrip(_CLOSING))


def _closing(text: str, opening: re.Match[str]) -> int:
    """End of a quoted value; a quote that is escaped, or doubled as in YAML, belongs to it."""
    place, escape = opening.end(), len(opening["escape"])
    while (quote := _QUOTE.search(text, place)) is not None:
        place, run = quote.end(), len(quote["escape"])
        if quote["quote"] != opening["quote"] or (run > escape if escape else run % 2):
            continue
        if quote["quote"] == "'" and text[place : place + 1] == "'":
            place += 1
            continue
        return quote.end() - 1 - min(run, escape)
    return len(text)


def _named(document: Mapping[str, Any], key: Any) -> str:
    """Return the name of a value: its key, or what its `name` says where name and value stand side by side."""
    pair = isinstance(document.get("name"), str) and isinstance(document.get("value"), str)
    return str(document["name"]) if pair and key == "value" else str(key)


def _leaves(value: Any, path: str, name: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield (path, value, name) of every leaf of a document; a list item is known by its `name`, if it has one."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, f"{path}.{key}" if path else str(key), _named(value, key))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            known = part.get("name") if isinstance(part, Mapping) else None
            yield from _leaves(part, f"{path}.{known if isinstance(known, str) else number}", name)
    else:
        yield path, value, name
