"""Specs, profiles, reports and command lines that are wrong by construction, by seed. For `benchmarks.spec_fuzz`.

Each case starts from something valid and takes one step that no reading could accept: a key that does not exist, a
value of another type or outside its range, a text that is not YAML, an option or argument that cannot be meant.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from benchmarks.malformed_values import (
    CRONS,
    DURATIONS,
    FREE,
    HANDLES,
    NAMES,
    NUMBERS,
    OVERRIDES,
    PATHS,
    PROFILE_COMMANDS,
    PROFILE_VALUES,
    PROFILES,
    REPORT,
    SPEC_COMMANDS,
    SPEC_VALUES,
    SPECS,
    TOO_FEW,
    VERSIONS,
    ZONES,
    Document,
)

Path = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that must end with exit code 2 and one line.

    Attributes:
        what: How it was made, e.g. `spec: unknown key`.
        arguments: Of `graceful`, below a folder that holds the valid files.
        content: Bytes of `case.yaml`; None: no such file.
        env: Variables in which this case differs.
    """

    what: str
    arguments: tuple[str, ...]
    content: bytes | None = None
    env: dict[str, str] = field(default_factory=dict)


def cases(seed: int, count: int) -> Iterator[Case]:
    """Generate the cases of a seed: half of them specs, a quarter profiles and reports, a quarter command lines."""
    chance = random.Random(seed)
    makers = (_spec, _spec, _spec, _spec, _profile, _profile, _command, _command, _override, _report)
    for number in range(count):
        yield makers[number % len(makers)](chance)


def _spec(chance: random.Random) -> Case:
    document = chance.choice(SPECS)
    if chance.random() < 0.3:
        path, values = chance.choice(SPEC_VALUES)
        step, content = f"value of {path}", _written(_with(document, path, chance.choice(values)))
    else:
        step, content = _step(document, chance, required=("model", "name", "task"))
    arguments = chance.choice(SPEC_COMMANDS)
    return Case(what=f"spec: {step}", arguments=_filled(arguments, "case.yaml"), content=content)


def _profile(chance: random.Random) -> Case:
    if chance.random() < 0.4:
        index, path, values = chance.choice(PROFILE_VALUES)
        step, content = f"value of {path}", _written(_with(PROFILES[index], path, chance.choice(values)))
    else:
        document = chance.choice(PROFILES)
        required = {
            "local": ("kind",),
            "rayjobs": ("kind", "address", "home"),
            "kuberay": ("kind", "namespace", "image"),
        }
        step, content = _step(document, chance, required=required[document["kind"]])
    return Case(
        what=f"profile: {step}", arguments=_filled(chance.choice(PROFILE_COMMANDS), "./case.yaml"), content=content
    )


def _report(chance: random.Random) -> Case:
    """A report is JSON; every step of documents makes it unreadable, of another shape, or of another model."""
    if chance.random() < 0.5:
        damaged = copy.deepcopy(REPORT)
        key = chance.choice(sorted(damaged))
        odd = (7, None, [7], [[]], {"x": 7}) if key == "version" else (7, "x", None, [7], [[]])
        damaged[key] = chance.choice((7, None) if key == "notes" else odd)
        content = json.dumps(damaged).encode()
    else:
        text = json.dumps(REPORT)
        content = chance.choice(
            (
                b"",
                b"\0",
                b"\xff\xfe{",
                b"[]",
                b"7",
                text[: chance.randrange(len(text))].encode(),
                b"[" * 100_000,
                text.replace("0.06", "NaN").encode(),
                text.replace("0.06", "1e999").encode(),
                text.replace("1000", "9" * 5000).encode(),
                text.encode("utf-16-le"),
                text.replace("0.06", '"x"').encode(),
            )
        )
    return Case(what="report", arguments=("gate", "case.yaml", "v2.yaml"), content=content)


def _override(chance: random.Random) -> Case:
    arguments = chance.choice([command for command in SPEC_COMMANDS if command[0] != "diff"])
    override = chance.choice(OVERRIDES)
    return Case(what="override", arguments=(*_filled(arguments, "v2.yaml"), "--set", override))


def _command(chance: random.Random) -> Case:
    what, makers = chance.choice(tuple(COMMAND_LINES.items()))
    arguments = chance.choice(makers)(chance)
    return Case(what=f"command line: {what}", arguments=tuple(arguments), env=_env(what, chance))


Maker = Callable[[random.Random], tuple[str, ...]]


def _any(*before: str, of: tuple[str, ...], after: tuple[str, ...] = ()) -> Maker:
    """A command line with one bad word among good ones."""
    return lambda chance: (*before, chance.choice(of), *after)


def _env(what: str, chance: random.Random) -> dict[str, str]:
    if what == "log level":
        return {"GRACEFUL_LOG_LEVEL": chance.choice(("loud", "-1", "²", "9" * 400))}
    if what == "home variable":
        return {"GRACEFUL_HOME": chance.choice(("~nosuchuser/x", "x" * 5000, "a/" + "y" * 300))}
    if what == "registry variable":
        return {"MLFLOW_TRACKING_URI": chance.choice(("http://[::1", "http://a:port/", "http://a:99999/"))}
    if what == "webhook variable":
        return {"GRACEFUL_WEBHOOK": chance.choice(("http://[::1", "ftp://a", "x", "http://a:99999/"))}
    return {}


_VALID = ("refresh", "v2.yaml", "--dry-run")
COMMAND_LINES: dict[str, tuple[Maker, ...]] = {
    "unknown command": (_any(of=("refersh", "", "-", "²", "\udcff", "nul\0", "x" * 5000, "lineage-repair")),),
    "unknown option": (
        _any(*_VALID, of=("--dry", "--drry-run", "-z", "--²", "--home", "--set", "-o", "--on=x", "--output=")),
        _any("schedule", "list", of=("--al", "--on", "-n", "extra")),
        _any("list", of=("--on", "--context", "surplus", "-q")),
    ),
    "missing argument": (lambda chance: chance.choice(TOO_FEW),),
    "surplus argument": (_any(*_VALID, of=("v3.yaml", "", "²")), _any("doctor", of=("x",)), _any("ui", of=("x",))),
    "output": (_any(*_VALID, "-o", of=("xml", "", "JSON", "tabel", "\udcff")),),
    "path of a spec": tuple(_any(name, of=PATHS) for name in ("refresh", "train", "tune", "evaluate")),
    "path of a report": (_any("gate", of=PATHS, after=("v2.yaml",)),),
    "path of a home": (
        _any(*_VALID, "--home", of=("~nosuchuser", "v2.yaml", "nul\0", "x" * 5000, "a/" + "y" * 300, "")),
        _any("lineage", "glyphs", "--home", of=("~nosuchuser", "v2.yaml", "x" * 5000)),
    ),
    "profile name": (
        _any(
            "plan",
            "v2.yaml",
            "--offline",
            "--on",
            of=("nowhere", "../x", "kuberay.yml", "", "\0", "x" * 5000, "~no/x.yaml", ".yaml"),
        ),
        _any("list", "--on", of=("nowhere", "\udcff", "nul\0.yaml", "/.yaml", "v2.yaml")),
    ),
    "number": (
        _any("tune", "v2.yaml", "--dry-run", "--trials", of=(*NUMBERS, "0")),
        _any("lineage", "glyphs", "--last", of=(*NUMBERS, "0")),
        _any("ui", "--port", of=(*NUMBERS, "65536")),
        _any(
            "status",
            "glyphs-v2",
            "--on",
            "local",
            "--wait",
            "--timeout",
            of=("x", "-1", "²", "nan", "", "inf", "1e999"),
        ),
        _any("lineage", "repair", "glyphs", "--older-than", of=("x", "-1", "²", "nan", "", "inf", "9" * 400)),
        _any(
            "promote",
            "glyphs:1",
            "--reason",
            "x",
            "--expect",
            of=("x", "0", "-1", "²", "\u0661", "", "1.5", "9" * 5000),
        ),
    ),
    "duration": (
        _any("logs", "glyphs-v2", "--on", "local", "--since", of=DURATIONS),
        _any("gc", "--on", "kuberay.yaml", "--older-than", of=DURATIONS),
        _any("gc", "--on", "local", "--older-than", of=DURATIONS),
        _any("gc", "--on", "local", "--cache-gb", of=("x", "-1", "nan", "inf", "", "1e999", "\u00b2")),
    ),
    "cron": (_any("schedule", "apply", "nightly", "v2.yaml", "--dry-run", "--cron", of=CRONS),),
    "time zone": (
        _any("schedule", "apply", "nightly", "v2.yaml", "--dry-run", "--cron", "@daily", "--time-zone", of=ZONES),
    ),
    "schedule name": (
        _any("schedule", "apply", of=NAMES, after=("v2.yaml", "--dry-run", "--cron", "@daily")),
        _any("schedule", "pause", of=(*NAMES, "nosuch")),
        _any("schedule", "run-now", of=(*NAMES, "nosuch")),
        _any("schedule", "delete", of=(*NAMES, "nosuch")),
    ),
    "version": (
        _any("promote", "--reason", "x", of=VERSIONS),
        _any("hold", "--reason", "x", of=VERSIONS),
        _any("history", of=VERSIONS),
        _any("diff", "glyphs:1", of=VERSIONS),
        _any("lineage", of=("", "Glyphs", "a b", "../x", "²", "g" * 64)),
    ),
    "handle": (
        _any("status", "--on", "local", of=HANDLES),
        _any("logs", "--on", "local", of=HANDLES),
        _any("stop", "--on", "local", of=(*HANDLES, "nosuch-run", "../x", "\0", "x" * 5000, "")),
    ),
    "schema key": (_any("schema", of=("zz", "train.zz", "task..kind", "", ".", "train.", "²", "x" * 5000, "\udcff")),),
    "contradictory options": (
        lambda chance: ("evaluate", "v2.yaml", "--versions", "v1"),
        lambda chance: ("list", "--on", "local", "--context", "x"),
        lambda chance: ("schedule", "list", "--on", "rayjobs.yaml"),
        lambda chance: ("gc", "--on", "local", "--context", "x"),
        lambda chance: ("refresh", "v2.yaml", "--dry-run", "--quiet=1"),
    ),
    "log level": (lambda chance: ("train", "v2.yaml"), lambda chance: ("lineage", "glyphs")),
    "home variable": (lambda chance: ("lineage", "glyphs"), lambda chance: ("list", "--on", "local")),
    "registry variable": (lambda chance: ("lineage", "glyphs"), lambda chance: ("refresh", "v2.yaml")),
    "webhook variable": (lambda chance: ("refresh", "v2.yaml"),),
}


def _filled(arguments: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(name if word == "{}" else word for word in arguments)


def _with(document: Document, path: str, value: Any) -> Document:
    changed = copy.deepcopy(document)
    *parents, last = path.split("/")
    node = changed
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return changed


def _step(document: Document, chance: random.Random, *, required: tuple[str, ...]) -> tuple[str, bytes]:
    """One step that makes a valid document wrong: its name, and what is then in the file."""
    name = chance.choice(("unknown key", "type", "missing key", "yaml", "yaml", "yaml", "encoding", "top"))
    changed = copy.deepcopy(document)
    if name == "unknown key":
        _node(changed, chance.choice(list(_sections(changed))))[
            chance.choice(("zz", "Train", "epochs ", "²", "a.b", ""))
        ] = 1
        return name, _written(changed)
    if name == "type":
        *parents, last = chance.choice(list(_values(changed)))
        _node(changed, tuple(parents))[last] = chance.choice(
            ([[1]], [{"zz": 1}, None]) if last in FREE else ({"zz": 1}, [[1]])
        )
        return name, _written(changed)
    if name == "missing key":
        del changed[chance.choice(required)]
        return name, _written(changed)
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
    """Texts that YAML, or the limits on it, refuse."""
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


def _written(document: Document) -> bytes:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


def _sections(node: Any, path: Path = ()) -> Iterator[Path]:
    """Paths of the mappings whose keys are ours."""
    if isinstance(node, dict) and path[-1:] not in [(name,) for name in FREE]:
        yield path
    for key, value in _items(node):
        yield from _sections(value, (*path, key))


def _values(node: Any, path: Path = ()) -> Iterator[Path]:
    """Paths of everything that stands below a section of ours."""
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
