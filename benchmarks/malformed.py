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

from benchmarks.malformed_documents import with_value, written, wrong_step
from benchmarks.malformed_values import (
    CRONS,
    DURATIONS,
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
)


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
        step, content = f"value of {path}", written(with_value(document, path, chance.choice(values)))
    else:
        step, content = wrong_step(document, chance, required=("model", "name", "task"))
    arguments = chance.choice(SPEC_COMMANDS)
    return Case(what=f"spec: {step}", arguments=_filled(arguments, "case.yaml"), content=content)


def _profile(chance: random.Random) -> Case:
    if chance.random() < 0.4:
        index, path, values = chance.choice(PROFILE_VALUES)
        step, content = f"value of {path}", written(with_value(PROFILES[index], path, chance.choice(values)))
    else:
        document = chance.choice(PROFILES)
        required = {
            "local": ("kind",),
            "rayjobs": ("kind", "address", "home"),
            "kuberay": ("kind", "namespace", "image"),
        }
        step, content = wrong_step(document, chance, required=required[document["kind"]])
    return Case(
        what=f"profile: {step}", arguments=_filled(chance.choice(PROFILE_COMMANDS), "./case.yaml"), content=content
    )


def _report(chance: random.Random) -> Case:
    """Return a damaged report: unreadable JSON, JSON of another shape, or a report of another model."""
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
    """Return a command line with one bad word among good ones."""
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
