"""Documents that `graceful index` and `graceful backfill` send to their programs. Runs on the client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graceful.cli import programs
from graceful.cli.version_commands import user
from graceful.errors import SpecError

SOURCE = ("version", "spec", "split", "vectors", "space", "metric")
SETTINGS = ("order", "seed", "rate", "batch", "stop_at", "shard")
"""Options of a backfill that its program reads under the same names."""


def settings(pairs: Sequence[str]) -> dict[str, str]:
    """Return `KEY=VALUE` options of a backend.

    Raises:
        SpecError: One has no `=`, or a key comes twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key or key in found:
            raise SpecError(f"--option {pair!r}: must be KEY=VALUE, each key once")
        found[key] = value
    return found


def source(arguments: dict[str, Any], *, split: str) -> dict[str, Any]:
    """Take the options about vectors out of a command's arguments, and return what is written in them.

    Raises:
        SpecError: Options that exclude each other, or no reference.
    """
    given = {name: arguments.pop(name, None) for name in SOURCE}
    if given["version"] and given["vectors"]:
        raise SpecError("--version and --vectors exclude each other: the vectors are made, or in a file")
    if given["vectors"] and (given["spec"] or given["split"]):
        raise SpecError("--spec and --split belong to --version; leave them out beside --vectors")
    if given["version"]:
        programs.require_reference(given["version"])
        if given["space"]:
            raise SpecError("--space names the model of a file; a version has its own name, leave --space out")
        resolved = None if given["spec"] is None else programs.resolve(given["spec"], (), None).dump()
        return {"version": given["version"], "spec": resolved, "split": given["split"] or split}
    if given["vectors"]:
        metric = given["metric"] or "cosine"
        return {"vectors": given["vectors"], "space": given["space"], "metric": metric}
    return {}


def price(spec: Path | None, on: str | None) -> dict[str, Any]:
    """Return what an hour on the machines of a profile costs; nothing where no profile is named.

    Raises:
        SpecError: There is no spec whose machines could be priced, or the profile has no prices.
    """
    if on is None:
        return {}
    if spec is None:
        raise SpecError("--on: which machines a profile gives follows from a spec; write --spec as well")
    from graceful.cli import planning

    _, planned = planning.make(programs.resolve(spec, (), None), on=on, offline=True)
    if planned.price is None:
        raise SpecError(f"--on {on}: the profile has no prices; write prices in it, or leave --on out")
    return {"price": planned.price, "currency": planned.currency}


def described(action: str, index: str, arguments: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """Return the document of a program, taking what stands in it out of a command's arguments.

    Raises:
        SpecError: Options that exclude each other.
    """
    where = source(arguments, split="query" if action in ("query", "accept") else "gallery")
    document: dict[str, Any] = {"action": action, "index": index, **parts}
    if where:
        document["source"] = where
    if "reason" in arguments:
        document["reason"] = arguments.pop("reason")
        document["author"] = arguments.pop("author", None) or user()
    return document


def start(action: str, index: str, arguments: dict[str, Any], *, program: str = "index", **parts: Any) -> int:
    """Run `graceful.programs index` with the options of the command line.

    Raises:
        SpecError: Options that exclude each other.
        InfrastructureError: It could not be started.
    """
    document = described(action, index, arguments, **parts)
    return programs.start(program, document=document, **arguments)
