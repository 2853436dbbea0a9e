"""Documents of YAML that are one step away from a valid one and that no reading accepts. For `benchmarks.malformed`."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import yaml

from benchmarks.malformed_values import FREE, Document

Path = tuple[str | int, ...]


def with_value(document: Document, path: str, value: Any) -> Document:
    """Return a document in which the key at a path, such as `train/epochs`, has another value."""
    changed = copy.deepcopy(document)
    *parents, last = path.split("/")
    node = changed
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return changed


def wrong_step(document: Document, chance: random.Random, *, required: tuple[str, ...]) -> tuple[str, bytes]:
    """Return one step that makes a valid document wrong: its name, and the content of the file."""
    name = chance.choice(("unknown key", "type", "missing key", "yaml", "yaml", "yaml", "encoding", "top"))
    changed = copy.deepcopy(document)
    if name == "unknown key":
        _node(changed, chance.choice(list(_sections(changed))))[
            chance.choice(("zz", "Train", "epochs ", "²", "a.b", ""))
        ] = 1
        return name, written(changed)
    if name == "type":
        *parents, last = chance.choice(list(_values(changed)))
        _node(changed, tuple(parents))[last] = chance.choice(
            ([[1]], [{"zz": 1}, None]) if last in FREE else ({"zz": 1}, [[1]])
        )
        return name, written(changed)
    if name == "missing key":
        del changed[chance.choice(required)]
        return name, written(changed)
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    if name == "yaml":
        title, broken = chance.choice(tuple(_broken(text, chance).items()))
        return f"{name}, {title}", broken.encode("utf-8", "surrogatepass")
    if name == "encoding":
        return name, chance.choice(
            (
                text.encode("utf-16-le"),
                text.encode() + b"\xff",
                b"\x80" + text.encode(),
                text.encode("utf-32-be"),
                text.replace(":", ":\0", 1).encode(),
                bytes(chance.randrange(128, 256) for _ in range(99)),
            )
        )
    return name, chance.choice(
        (b"", b"- a\n", b"7", b"text", b"null", b"--- []", b"[1, 2]", b"'", b"{}", b"# nothing\n")
    )


def _broken(text: str, chance: random.Random) -> dict[str, str]:
    """Return texts that YAML, or the limits on it, refuse, by the name of the fault."""
    first = text.splitlines()[0]
    return {
        "a key twice": f"{text}{first}\n",
        "unclosed": text + chance.choice(("a: [", "a: {", "a: '", 'a: "', "a: [1, 2", "? [")) + "\n",
        "indentation": f"{text}  a: 1\n b: 2\n",
        "tab": f"{text}a:\n\t- 1\n",
        "control character": text.replace(":", f": {chr(chance.choice((0, 1, 7, 27, 127)))}", 1),
        "tag": text
        + f"a: {chance.choice(('!!int abc', '!!float x', '!!bool q', '!zz 1', '!!timestamp 2024-13-45'))}\n",
        "object": text + f"a: !!python/{chance.choice(('object:os.system', 'name:os.system', 'tuple'))} [x]\n",
        "unknown alias": text + "a: *nowhere\n",
        "alias inside itself": text + chance.choice(("a: &a [*a]\n", "a: &a {b: *a}\n")),
        "alias bomb": text + _bomb(chance.randrange(6, 20)),
        "nested": text + "a: " + chance.choice("[{") * chance.randrange(100, 50_000),
        "two documents": f"{text}---\n{text}",
        "key that is not text": text + chance.choice(("1: a\n", "on: a\n", "~: a\n", "[a]: b\n", "1e3: a\n")),
        "digits": text + f"a: {'9' * chance.randrange(100, 6000)}\n",
        "beyond floats": text + f"a: 1e{chance.randrange(400, 9999)}\n",
        "long": text + f"a: [{'1,' * 70_000}]\n",
        "large": text + "a: " + "x" * 2_000_000,
        "merge of nothing": text + "<<: 5\n",
        "surrogate": text.replace(first, first + "\udcff", 1),
        "directive": f"%YAML 9.9\n---\n{text}",
        "percent": f"{text}a: %x\n@b: `c`\n",
    }


def _bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]\n"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, levels)]
    return "".join(lines)


def written(document: Document) -> bytes:
    """Return a document as YAML."""
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


def _sections(node: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the paths of the mappings whose keys are graceful's."""
    if isinstance(node, dict) and path[-1:] not in [(name,) for name in FREE]:
        yield path
    for key, value in _items(node):
        yield from _sections(value, (*path, key))


def _values(node: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the paths of everything below a section of graceful's."""
    if path[-1:] in [(name,) for name in FREE - {"env"}]:
        return
    for key, value in _items(node):
        yield (*path, key)
        yield from _values(value, (*path, key))


def _items(node: Any) -> list[tuple[str | int, Any]]:
    return list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []


def _node(document: Any, path: Path) -> Any:
    for part in path:
        document = document[part]
    return document
