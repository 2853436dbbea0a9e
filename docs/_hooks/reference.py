"""Pages of the reference that are written from the code when the site is built: nothing in them can be out of date."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
import runpy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from graceful import catalogue, errors, section_keys
from graceful.catalogue import About
from graceful.cli.app import graceful as command_line
from graceful.launch import registry as backends
from graceful.losses import registry as losses
from graceful.spec import RefreshSpec

ROOT = Path(__file__).parents[2]
_FORMULAS = runpy.run_path(str(Path(__file__).with_name("formulas.py")))
"""mkdocs loads a hook as a file, so that a hook cannot import its neighbours."""
API = (
    "graceful.tasks.base:Samples",
    "graceful.tasks.base:Task",
    "graceful.tasks.streams:Stream",
    "graceful.models.base:Headed",
    "graceful.models.base:Outputs",
    "graceful.learners.base:Learner",
    "graceful.losses.base:Loss",
    "graceful.losses.base:Merge",
    "graceful.catalogue:Metric",
    "graceful.report:Measurement",
    "graceful.launch.base:Profile",
    "graceful.launch.backend:Backend",
    "graceful.adapters.bundle:Adapter",
    "graceful.adapters.bundle:load",
    "graceful.testing.loss:check",
    "graceful.testing.metric:check",
    "graceful.testing.backend:BackendContract",
)
"""Classes that code of users derives from or makes, and functions that it calls."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and those files of the repository that are pages as they are."""
    pages = {
        "reference/commands.md": commands(),
        "reference/spec.md": spec(),
        "reference/losses.md": loss_keys(),
        "reference/metrics.md": metrics(),
        "reference/errors.md": error_classes(),
        "reference/profiles.md": profiles(),
        "reference/helm.md": helm(),
        "reference/python.md": python(),
        "reference/cluster.md": _from_root("cluster/README.md"),
        "security.md": _from_root("SECURITY.md"),
        "changelog.md": _from_root("CHANGELOG.md"),
        "decisions.md": _from_root("DECISIONS.md"),
        "contributing.md": _from_root("CONTRIBUTING.md"),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def _from_root(name: str) -> str:
    """Return a page of the repository's root, with links that lead from the folder of the site."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"\]\(docs/", "](", text)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Return a text for one cell: pipes are escaped, and so are angle brackets outside of code."""
    line = " ".join(str(text).split()).replace("|", "\\|")
    return re.sub(r"(`[^`]*`)|<", lambda match: match[1] or "&lt;", line)


def code(text: str) -> str:
    """Return a text as inline code; empty stays empty."""
    return f"`{text}`" if text else ""


# --- commands ---


def commands() -> str:
    """Return the help of every command."""
    parts = ["# Commands", "This is what `--help` prints for each command.", *_helps(command_line, "graceful", None)]
    return "\n\n".join(parts)


def _helps(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    context = click.Context(command, info_name=name.rpartition(" ")[2], parent=parent, max_content_width=100)
    context.terminal_width = 100
    yield f"## {name}"
    yield f"```text\n{context.get_help()}\n```"
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            member = command.get_command(context, below)
            if member is not None and not member.hidden:
                yield from _helps(member, f"{name} {below}", context)


# --- keys ---


def spec() -> str:
    """Return every key of a spec, a table for each of its sections."""
    return _keys(
        "# Keys of a spec",
        "A spec is a YAML file. `--set KEY=VALUE` overrides any key. `graceful schema KEY` shows these tables as well.",
        RefreshSpec,
    )


def profiles() -> str:
    """Return every key of a profile, by kind."""
    parts = [
        "# Keys of a profile",
        "A profile, `cluster/NAME.yaml`, says where jobs run; commands take it as `--on NAME`.",
    ]
    for kind in backends.OWN:
        profile = backends.find(kind)
        assert profile is not None
        parts += [f"## kind: {kind}", inspect.cleandoc(profile.__doc__ or ""), _key_table(section_keys.keys(profile))]
    return "\n\n".join(parts)


def loss_keys() -> str:
    """Return what each loss computes, and its keys."""
    parts = [
        "# Losses",
        "Entries of `compatibility.losses`. Every one compares the new version with its predecessors while it trains.",
    ]
    for kind, loss in losses.kinds().items():
        module = inspect.getmodule(loss)
        text = inspect.cleandoc((module.__doc__ if module else None) or loss.__doc__ or "")
        parts += [f"## {kind}", text.replace("\n    ", "\n\n    ", 1), _key_table(section_keys.keys(loss))]
    return "\n\n".join(parts)


def _keys(title: str, text: str, section: Any) -> str:
    """Return a chapter for the keys that stand alone, one for each section, and one below it for each kind."""
    chapters: dict[str, list[section_keys.Key]] = {"Top level": []}
    introductions: dict[str, str] = {}
    every = list(section_keys.keys(section))
    sections = {re.split(r"[.\[<]", key.path)[0] for key in every if re.search(r"[.\[<]", key.path)}
    for key in every:
        if key.path.endswith(">"):
            introductions[_chapter(key.path)] = key.doc
            chapters.setdefault(_chapter(key.path), [])
            continue
        prefix, name = re.fullmatch(r"(.*[>.]|)([^>.]+)", key.path).groups()  # type: ignore[union-attr]
        chapter = _chapter(prefix.rstrip(".")) or (key.path if key.path in sections else "Top level")
        chapters.setdefault(chapter, []).append(replace(key, path=name))
    parts = [title, text]
    for chapter, keys in chapters.items():
        level = "##" if "," not in chapter and ":" not in chapter else "###"
        parts += [f"{level} {chapter}", introductions.get(chapter, ""), _key_table(keys) if keys else ""]
    return "\n\n".join(filter(None, parts))


def _chapter(prefix: str) -> str:
    """Return the title for a path: `task<table>.network<small>` becomes `task, kind table: network, kind small`."""
    steps = [re.sub(r"<(\w+)>", r", kind \1", step) for step in prefix.replace("[]", "").split(".") if step]
    return ": ".join(steps)


def _key_table(keys: Iterable[section_keys.Key]) -> str:
    rows = []
    for key in keys:
        default = "required" if key.default is None else code(key.default)
        rows.append((code(key.path), key.expects, default, key.doc))
    return table(("key", "expects", "default", "meaning"), rows)


# --- metrics, errors ---


def metrics() -> str:
    """Return every metric with its direction, unit, formula and meaning."""
    titles = {
        About.VERSION: "Of a version",
        About.CHAIN: "Of a version against all its ancestors together",
        About.ANCESTOR: "Of a version against each ancestor",
        About.PAIR: "Of a query model on each gallery model",
        About.ADAPTER: "Of an adapter between two versions",
    }
    parts = [
        "# Metrics",
        "`gate.constraints` may bound each of these. The side of the bound follows from the metric: where lower is "
        "better, `bound` is the most that passes. Intervals respect groups, and the gate looks at the worse end of an "
        "interval. Metrics of retrieval need `evaluate.retrieval`.",
        _FORMULAS["NOTATION"],
    ]
    formulas = _FORMULAS["formulas"]()
    for about, title in titles.items():
        rows = [
            (code(metric.name), metric.better.value, metric.unit, code(formulas[metric.name]), metric.meaning)
            for metric in catalogue.METRICS.values()
            if metric.about is about
        ]
        parts += [f"## {title}", table(("metric", "better", "unit", "formula", "meaning"), rows)]
    return "\n\n".join(parts)


def error_classes() -> str:
    """Return the exit codes and the classes of errors behind them."""
    exits = (
        (errors.EXIT_PASSED, "The command did what it was asked for; a version passed."),
        (errors.EXIT_BUG, "A bug in graceful. A crash log is named."),
        (errors.EXIT_USAGE, "The command line, the spec or the data is wrong. Nothing was registered."),
        (errors.EXIT_HELD, "The gate held the version: it is registered with the reasons, and the champion stays."),
        (
            errors.EXIT_INFRASTRUCTURE,
            "A registry, a disk, a bucket or a cluster failed. The same command may succeed later.",
        ),
        (errors.EXIT_TRAINING, "Training failed, collapsed, was stopped or ran out of time."),
        (errors.EXIT_INTERRUPTED, "Interrupted. The same command resumes."),
    )
    classes = [
        (code(name), str(value.exit_code), (value.__doc__ or "").strip().splitlines()[0])
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.GracefulError) and value is not errors.GracefulError
    ]
    return "\n\n".join(
        [
            "# Exit codes and errors",
            "An error is one line on stderr that says what is wrong, with which value, where, and what to do.",
            table(("exit code", "meaning"), [(str(number), meaning) for number, meaning in exits]),
            "## Classes",
            "Code that calls graceful catches these, from `graceful.errors`.",
            table(("class", "exit code", "meaning"), classes),
        ]
    )


# --- the chart, Python ---


def helm() -> str:
    """Return every value of the chart with the comment above it."""
    rows, path, comment = [], [], []
    text = (ROOT / "helm/graceful/values.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            comment.append(stripped.lstrip("#- ").strip())
            continue
        match = re.match(r"^( *)([A-Za-z0-9_.\"/-]+):\s*(.*)$", line)
        if match is None:
            comment = [] if not stripped else comment
            continue
        depth = len(match[1]) // 2
        path = [*path[:depth], match[2]]
        if comment:
            default = functools.reduce(lambda below, key: below[key.strip('"')], path, values)
            rows.append((code(".".join(path)), code(json.dumps(default)), " ".join(comment)))
        comment = []
    text = "Values of `helm/graceful`. `values.schema.json` refuses what is not listed, at every depth."
    return "\n\n".join(["# Values of the Helm chart", text, table(("value", "default", "meaning"), rows)])


def python() -> str:
    """Return the classes that code of users derives from, with their public members, and functions that it calls."""
    parts = [
        "# Python",
        "What a task, a learner, a loss, a metric or a backend of your own is made of, how an adapter is used in a "
        "serving process, and the checks for the tests of your package. Everything else may change. "
        "[Errors](errors.md) lists the exceptions. Registered versions are MLflow models: "
        "`mlflow.pyfunc.load_model('models:/MODEL@champion')`.",
    ]
    for address in API:
        module, _, name = address.partition(":")
        value = getattr(importlib.import_module(module), name)
        parts += list(_class(value, module) if inspect.isclass(value) else _function(value, module))
    return "\n\n".join(parts)


def _class(value: type, module: str) -> Iterator[str]:
    yield f"## {value.__name__}"
    yield f"```python\nfrom {module} import {value.__name__}\n```"
    yield _doc(value)
    for name, member in tuple(vars(value).items()):
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if name.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        shape = "" if isinstance(member, property) else _signature(function)
        yield f"### {name}"
        yield f"```python\n{name}{shape}\n```"
        yield _doc(function)


def _function(value: Any, module: str) -> Iterator[str]:
    yield f"## {module.removeprefix('graceful.')}.{value.__name__}"
    yield f"```python\nfrom {module} import {value.__name__}\n\n{value.__name__}{_signature(value)}\n```"
    yield _doc(value)


def _signature(function: Any) -> str:
    """Return a signature without `self` and without the quotation marks of postponed annotations."""
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(function)))
    return re.sub(r"^\(self(, )?", "(", text)


def _doc(value: Any) -> str:
    """Return a docstring with its sections as they are written."""
    first, _, rest = inspect.cleandoc(value.__doc__ or "").partition("\n\n")
    return first + (f"\n\n```text\n{rest}\n```" if rest else "")
