"""The one reader and writer of YAML: specs, profiles, `--set` values, kubeconfigs. Runs in every process.

It reads JSON's values alone, with numbers as YAML 1.2 writes them: `1e-4` is a number, `010` is ten, `1:30` and
`2024-01-31` are text. Two spellings of YAML 1.1 remain, because specs are written with them: yes, no, on and off are
truth values, and digits may be grouped (`1_000`). Refused are keys written twice, keys that are not text, tags of other
types, and documents that would take minutes or gigabytes: too long, too deeply nested, or aliases that multiply.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from graceful.errors import SpecError, one_line

LARGEST = 2**20
"""Bytes of a document; what travels to a cluster must fit a ConfigMap anyway."""
DEEPEST = 64
"""Levels of nesting."""
MOST_NODES = 50_000
"""Keys, values and sections, each counted as often as aliases repeat it."""
LONGEST_NUMBER = 64
"""Characters of a number."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_DIGITS = "[0-9]+(?:_[0-9]+)*"
_INT = re.compile(rf"[-+]?{_DIGITS}|0o[0-7]+|[-+]?0x[0-9a-fA-F]+")
_BREAKS_OF_YAML_1_1 = re.compile("[\x85\u2028\u2029]")
_FLOAT = re.compile(
    rf"[-+]?(?:\.{_DIGITS}|{_DIGITS}(?:\.(?:{_DIGITS})?)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_RESOLVERS = (
    ("bool", re.compile(r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF"), "yYnNtTfFoO"),
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
    ("merge", re.compile(r"<<"), "<"),
)
_NAMES = {"bool": "true or false", "null": "null", "int": "an integer", "float": "a number"}


def read(path: Path, *, where: str | None = None, largest: int = LARGEST) -> Any:
    """Return what a YAML file holds: mappings, lists, texts, numbers, truth values and None.

    Args:
        path: The path of the file; a pipe will do.
        where: Named in errors; default: the path.
        largest: Bytes that it may hold.

    Raises:
        FileNotFoundError: There is none, for the caller to say what is missing.
        SpecError: One line: it cannot be read, is too large, or as `parse`.
    """
    where = str(path) if where is None else where
    try:
        return parse(read_text(path, largest=largest), where=where)
    except (OSError, ValueError) as e:
        if isinstance(e, FileNotFoundError):
            raise
        raise SpecError(f"{where}: cannot be read ({one_line(e)}); give a YAML file") from e


def read_text(path: Path, *, largest: int) -> str:
    """Return the text of a file that a person named, which may be anything: a device without an end, a folder.

    Raises:
        OSError: It cannot be opened or read.
        ValueError: It holds more bytes, or is not UTF-8; or there is a NUL in the path.
    """
    with path.open("rb") as stream:
        content = stream.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"more than {largest} bytes, the most that is read; is it the right file?")
    try:
        return content.decode(_encoding(content))
    except UnicodeDecodeError as e:
        name = e.encoding.upper().replace("UTF_", "UTF-").removesuffix("-SIG")
        raise ValueError(f"not {name} at byte {e.start}") from e


def _encoding(content: bytes) -> str:
    """Return the encoding that the mark at the beginning of a file names; UTF-8 without one."""
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if content.startswith(mark):
            return name
    return "utf-8"


def parse(text: str, *, where: str) -> Any:
    """Return what one YAML document holds.

    Raises:
        SpecError: One line with the number of the line: no YAML, a key twice, a key that is not text, a tag of another
            type, a value that its tag does not allow, or more nesting, nodes or digits than the limits above.
    """
    try:
        text.encode("utf-8")
        _bound(text)
        loader = _Strict(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _Check().visit(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except UnicodeEncodeError as e:
        raise SpecError(f"{where}: not valid YAML (not UTF-8 at character {e.start})") from e
    except yaml.YAMLError as e:
        raise SpecError(f"{where}: not valid YAML ({_problem_line(e)})") from e


def dump(value: Any, *, allow_unicode: bool = True) -> str:
    """Return a YAML document that `parse`, and readers of YAML 1.1, read back as the value; keys keep their order."""
    return str(yaml.dump(value, Dumper=_Quoting, sort_keys=False, allow_unicode=allow_unicode, width=120))


def needs_escapes(text: str) -> bool:
    """Return whether a text holds a line break of YAML 1.1 alone, which some readers fold into a space."""
    return bool(_BREAKS_OF_YAML_1_1.search(text))


class _Strict(_Loader):  # type: ignore[misc]
    """YAML's basic types, with numbers as YAML 1.2 writes them."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}

    def construct_int(self, node: yaml.ScalarNode) -> int:
        """Read a whole number."""
        text = str(node.value)
        if not _INT.fullmatch(text):
            raise _refused(f"{_shortened(text)} is not an integer", node)
        base = {"0x": 16, "0o": 8}.get(text.lstrip("-+")[:2].lower(), 10)
        return int(text, base)

    def construct_float(self, node: yaml.ScalarNode) -> float:
        """Read a number; one that is larger than any float is refused, not made infinite."""
        text = str(node.value)
        if not _FLOAT.fullmatch(text):
            raise _refused(f"{_shortened(text)} is not a number", node)
        if text.lstrip("-+").startswith((".i", ".I", ".n", ".N")):
            return float(text.replace(".", "", 1))
        value = float(text)
        if abs(value) == float("inf"):
            raise _refused(f"{_shortened(text)} is larger than any number a computer holds", node)
        return value

    def construct_bool(self, node: yaml.ScalarNode) -> bool:
        """Read a truth value."""
        word = str(node.value).lower()
        if word not in self.bool_values:
            raise _refused(f"{_shortened(word)} is neither true nor false", node)
        return bool(self.bool_values[word])


for _name in ("null", "bool", "int", "float", "str", "seq", "map"):
    _method = {"null": "yaml_null", "str": "yaml_str", "seq": "yaml_seq", "map": "yaml_map"}.get(_name, _name)
    _Strict.add_constructor(_TAG + _name, getattr(_Strict, f"construct_{_method}"))


def quoting(form: Any) -> Any:
    """Return a loader that reads these numbers and words, or a dumper that quotes texts in which it would."""
    for name, pattern, first in _RESOLVERS:
        form.add_implicit_resolver(_TAG + name, re.compile(f"^(?:{pattern.pattern})$"), list(first))
    return form


class _Quoting(yaml.SafeDumper):
    """Writes what YAML 1.1 and 1.2 read alike."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Return a node for a text; one with a line break of YAML 1.1 alone is escaped."""
        return self.represent_scalar(f"{_TAG}str", data, style='"' if needs_escapes(data) else None)


_Quoting.add_representer(str, _Quoting.represent_str)

quoting(_Quoting)
quoting(_Strict)


def _bound(text: str) -> None:
    """Refuse a document by its events, before anything recursive looks at it."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        nodes += isinstance(event, yaml.NodeEvent)
        if depth > DEEPEST:
            raise _refused(f"nested more than {DEEPEST} levels deep", event)
        if nodes > MOST_NODES:
            raise _refused(f"more than {MOST_NODES} keys and values", event)


class _Check:
    """Refuses what YAML allows and a document must not have; says on which line."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        """Nodes below each node, with aliases written out; 0 while the node is being visited."""

    def visit(self, node: yaml.Node) -> int:
        """Return how many nodes it stands for."""
        size = self.sizes.get(id(node))
        if size is not None:
            if size == 0:
                raise _refused("an alias that contains itself", node)
            return size
        self.sizes[id(node)] = 0
        if node.tag.removeprefix(_TAG) not in (*_NAMES, "str", "seq", "map", "merge"):
            tag = _shortened(node.tag.replace(_TAG, "!!"))
            raise _refused(f"could not determine a constructor for the tag {tag}; leave it out", node)
        size = 1 + sum(self.visit(child) for child in self._children(node))
        if size > MOST_NODES:
            raise _refused(f"aliases that stand for more than {MOST_NODES} keys and values", node)
        self.sizes[id(node)] = size
        return size

    def _children(self, node: yaml.Node) -> list[yaml.Node]:
        if isinstance(node, yaml.MappingNode):
            self._require_keys(node)
            return [child for pair in node.value for child in pair]
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        if node.tag in (f"{_TAG}int", f"{_TAG}float") and len(node.value) > LONGEST_NUMBER:
            raise _refused(f"a number of {len(node.value)} digits; put it in quotes if it is text", node)
        return []

    @staticmethod
    def _require_keys(node: yaml.MappingNode) -> None:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag not in (f"{_TAG}str", f"{_TAG}merge") or not isinstance(key, yaml.ScalarNode):
                source = key.value if isinstance(key, yaml.ScalarNode) else "(a list or mapping)"
                raise _refused(f"key {_shortened(source)} is not text; put it in quotes", key)
            if key.value in lines:
                first = lines[key.value]
                before = f" (first in line {first})" if first != key.start_mark.line + 1 else ""
                raise _refused(f"key {_shortened(key.value)}{before} is written twice; keep one", key)
            lines[key.value] = key.start_mark.line + 1


def _shortened(text: str) -> str:
    return repr(text if len(text) <= LONGEST_NUMBER else f"{text[:LONGEST_NUMBER]}...")


def _refused(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _problem_line(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"{one_line(error.problem)}, line {error.problem_mark.line + 1}"
    return one_line(error)
