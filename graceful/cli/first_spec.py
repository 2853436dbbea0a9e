"""`graceful init`: look at data, ask what cannot be guessed, and write a valid spec. Client."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from graceful import documents, spec
from graceful.cli import data_guess
from graceful.cli import output as out
from graceful.errors import SpecError
from graceful.files import guarded, replacing

HEADER = """\
# Written by `graceful init {path}`. Every key: `graceful schema`.
# The gate's bound is a start: write what your users need. From the second version on, add what must not get worse, e.g.
#   - {{metric: negative_flip_rate, bound: 0.02, against: latest}}
"""


FETCH = "`hf download sentence-transformers/all-MiniLM-L6-v2 --local-dir minilm`"
"""Command that downloads a small checkpoint for texts; the package transformers installs it."""
EPOCHS_OF_FEW = 20
"""Epochs for few samples: an epoch then has a dozen steps, so that training has a few hundred."""
MANY_IMAGES = 2000
"""Number of images from which on the largest of graceful's small networks is suggested."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Options of the command line; None: the value is guessed, or asked on a terminal.

    Attributes:
        model: Name of the model family.
        label: Column of the class; of shards, its field.
        text: Column to embed.
        checkpoint: Folder of a transformers checkpoint, for text or images.
    """

    model: str | None = None
    label: str | None = None
    text: str | None = None
    checkpoint: Path | None = None


def write(path: Path, target: Path, *, answers: Answers, force: bool, output: str) -> int:
    """Write the first spec of a model family, and print the next commands.

    Args:
        path: The data: a folder, a file or a pattern.
        target: File of the spec.
        answers: What is not to be guessed.
        force: Replace a spec that is there.
        output: Form of the result: `table`, `json` or `yaml`.

    Returns:
        The exit code.

    Raises:
        SpecError: The target exists, or something can neither be guessed nor asked.
        DataError: The data cannot be read without code.
    """
    if target.exists() and not force:
        raise SpecError(f"{target} exists; add --force to replace it, or --out for another file")
    data = data_guess.look(path)
    task = _task(path, data, target, answers)
    model = answers.model or _answer("Name of the model family", _name(path if path.exists() else path.parent))
    document: dict[str, Any] = {"model": model, "name": "v1", "task": task}
    few = _batch_of_few(data)
    if task.get("network", {}).get("kind") == "transformers":
        document["train"] = {"epochs": 3, "batch_size": min(32, few or 32), "optimizer": {"kind": "adamw", "lr": 1e-4}}
    elif few is not None:
        document["train"] = {"epochs": EPOCHS_OF_FEW, "batch_size": few}
    document["gate"] = {"constraints": [{"metric": "error_rate", "bound": 0.5}]}
    spec.parse(document, where=str(target))
    with guarded(target, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as file:
            file.write((HEADER.format(path=path) + documents.dump(document)).encode())
    missing = _missing_packages(task)
    following = [
        *(f"pip install 'graceful-ai[{extra}]'" for extra in missing.values()),
        f"graceful refresh {target} --dry-run",
        f"graceful refresh {target}",
    ]
    if output != "table":
        out.document({"spec": str(target), "task": task["kind"], "next": following}, output)
        return 0
    out.line(f"{target}: {_summary(task)}")
    for package in missing:
        out.line(f"This task needs the package {package}, which is not installed here; the first step installs it.")
    out.line("next:  " + "\n       ".join(following))
    return 0


def _missing_packages(task: dict[str, Any]) -> dict[str, str]:
    """Return the packages that a task needs and that are not installed here, with the extra that brings each."""
    needed = {"datasets": "table"} if task["kind"] == "table" else {}
    if task.get("network", {}).get("kind") == "transformers":
        fields = {**task.get("columns", {}), **task.get("members", {})}
        needed["transformers"] = "text" if "text" in fields else "vision"
    return {package: extra for package, extra in needed.items() if importlib.util.find_spec(package) is None}


def _batch_of_few(data: data_guess.DataDescription) -> int | None:
    """Return a batch size for few samples, of which about half are trained on; None: many, or not counted."""
    samples = data.columns[0].rows if data.kind == "table" else data.images
    return 2 ** max(1, (samples // 16).bit_length() - 1) if 0 < samples < data_guess.SAMPLE else None


def _task(path: Path, data: data_guess.DataDescription, target: Path, answers: Answers) -> dict[str, Any]:
    if data.kind == "image_folder":
        return {"kind": "image_folder", "root": _relative(path, target), **_image_network(data.images, target, answers)}
    return _shards(data, target, answers) if data.kind == "shards" else _table(data, target, answers)


def _shards(data: data_guess.DataDescription, target: Path, answers: Answers) -> dict[str, Any]:
    members = {**data.members, **({"label": answers.label} if answers.label else {})}
    task: dict[str, Any] = {"kind": "shards", "files": _relative(Path(data.files), target), "members": members}
    if "image" in members:
        return {**task, **_image_network(None, target, answers)}
    return {**task, "network": _text_network(members["text"], target, answers)}


def _image_network(images: int | None, target: Path, answers: Answers) -> dict[str, Any]:
    """Return the keys of a task that say which network reads its images.

    Args:
        images: How many there are; None: not known.
        target: The target of the spec.
        answers: Which checkpoint, if any.
    """
    checkpoint = str(answers.checkpoint or "") or _answer(
        "Folder of a transformers checkpoint for images (none: a small network)", "", option="--checkpoint"
    )
    if not checkpoint:
        return {"size": 64, "network": {"size": "s2" if (images or 0) < MANY_IMAGES else "m"}}
    network = {"kind": "transformers", "checkpoint": _relative(Path(checkpoint), target)}
    has_weights = any(Path(checkpoint).glob("*.safetensors")) or not Path(checkpoint).is_dir()
    return {"network": network if has_weights else {**network, "weights": "random"}}


def _text_network(field: str, target: Path, answers: Answers) -> dict[str, Any]:
    checkpoint = str(answers.checkpoint or "") or _answer(
        f"Folder of a transformers checkpoint to embed {field!r}",
        None,
        option=f"--checkpoint FOLDER ({FETCH} downloads one)",
    )
    return {"kind": "transformers", "checkpoint": _relative(Path(checkpoint), target)}


def _table(data: data_guess.DataDescription, target: Path, answers: Answers) -> dict[str, Any]:
    names = [column.name for column in data.columns]
    label = _required_column("--label", answers.label, names) or _answer(
        f"Column of the class ({', '.join(names)})", data_guess.label_of(data.columns), option="--label", among=names
    )
    identity = data_guess.id_of(data.columns, excluded={label, answers.text or ""})
    excluded = {label, *data_guess.ids_of(data.columns)}
    named = {"label": label, **({"id": identity} if identity else {})}
    files = {"kind": "table", "files": _relative(Path(data.files), target)}
    image = None if answers.text else data_guess.image_of(data.columns, excluded=excluded)
    if image is not None:
        keys = _image_network(data.columns[0].rows, target, answers)
        return {**files, "columns": {"image": image, **named}, **keys}
    text = _required_column("--text", answers.text, names) or data_guess.text_of(data.columns, excluded=excluded)
    columns: dict[str, Any] = {"text": text} if text else _numbers_and_categories(data, excluded)
    task = {**files, "columns": {**columns, **named}}
    if text:
        task["network"] = _text_network(text, target, answers)
    return task


def _numbers_and_categories(data: data_guess.DataDescription, excluded: set[str]) -> dict[str, Any]:
    numbers = data_guess.numbers_of(data.columns, excluded=excluded)
    categories = data_guess.categories_of(data.columns, excluded=excluded)
    if not numbers and not categories:
        raise SpecError(
            f"{data.files}: neither a column of texts nor of numbers beside the class; name one with --text"
        )
    chosen = {name: list(names) for name, names in (("features", numbers), ("categories", categories)) if names}
    gaps = any(column.gaps for column in data.columns if column.name in (*numbers, *categories))
    return {**chosen, **({"missing": "indicator"} if gaps else {})}


def _required_column(option: str, name: str | None, names: list[str]) -> str | None:
    if name is not None and name not in names:
        raise SpecError(f"{option} {name}: no such column; the data has {', '.join(names)}")
    return name


def _answer(question: str, default: str | None, *, option: str = "--model", among: list[str] | None = None) -> str:
    """Ask on a terminal; elsewhere take the guess.

    Raises:
        SpecError: No terminal and no guess.
    """
    if not sys.stdin.isatty():
        if default is None:
            raise SpecError(f"{question}: cannot be guessed; give {option}")
        return default
    kind = click.Choice(among) if among else None
    shown = bool(default)
    return str(click.prompt(question, default=default, type=kind, show_choices=False, show_default=shown, err=True))


def _name(path: Path) -> str:
    """Return the name of a file or folder as the name of a model family."""
    letters = re.sub(r"[^a-z0-9]+", "-", path.resolve().stem.lower()).strip("-")[:63].strip("-")
    return letters or "model"


def _relative(path: Path, target: Path) -> str:
    return os.path.relpath(path.resolve(), target.resolve().parent)


def _summary(task: dict[str, Any]) -> str:
    if task["kind"] == "image_folder":
        return f"class folders of images in {task['root']}"
    if task["kind"] == "shards":
        members = task["members"]
        return f"shards {task['files']}, {members['label']} from {members.get('image') or members['text']}"
    columns = task["columns"]
    rows = [*columns.get("features", ()), *columns.get("categories", ())]
    inputs = columns.get("text") or columns.get("image") or ", ".join(rows)
    return f"rows of {task['files']}, {columns['label']} from {inputs}"
