"""What other packages add to graceful through entry points, one group for each kind of thing. Runs in every process.

    [project.entry-points."graceful.losses"]
    my_loss = "my_package.my_loss:MyLoss"

The name of an entry point is the name under which specs and profiles use the thing. A package that cannot be imported
makes its own things unavailable, with the reason in one line, and nothing else. Nothing is looked up until it is asked.
"""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from typing import Any

FAULTS = (
    ImportError,
    AttributeError,
    SyntaxError,
    ValueError,
    TypeError,
    NameError,
    OSError,
    RuntimeError,
    LookupError,
    AssertionError,
    ArithmeticError,
)
"""What the code of another package may raise where it is imported or called."""


def offered(
    group: str, noun: str, *, owner: Callable[[str], str | None], fault: Callable[[Any, str], str | None]
) -> Iterator[tuple[str, Any, str | None]]:
    """Load the entry points of a group, by name.

    Args:
        group: E.g. `graceful.losses`.
        noun: What its entry points are, in messages.
        owner: Returns what has a name already; None: it is free.
        fault: Returns what is wrong with a loaded thing of a name; None: nothing. May raise any of `FAULTS`.

    Yields:
        The name, the thing or None, and why it cannot be used or None.
    """
    entries = sorted(importlib.metadata.entry_points(group=group), key=lambda entry: (entry.name, entry.value))
    for name, same_name in itertools.groupby(entries, key=lambda entry: entry.name):
        first, *others = same_name
        thing, reason = None, "and another package offers that name, too" if others else None
        if reason is None and (has_it := owner(name)) is not None:
            reason = f"which is taken: {has_it} has that name"
        if reason is None:
            thing, reason = _loaded(first, fault)
        package = first.dist.name if first.dist else "a package"
        yield name, thing, reason and f"{package} offers the {noun} {name} as {first.value}, {reason}"


def collected(
    group: str, noun: str, *, owner: Callable[[str], str | None], fault: Callable[[Any, str], str | None]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the things of a group that can be used, by name, and why the others cannot; arguments as of `offered`."""
    available: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name, thing, reason in offered(group, noun, owner=owner, fault=fault):
        if reason is None:
            available[name] = thing
        else:
            reasons[name] = reason
    return available, reasons


def described(error: BaseException) -> str:
    """Return an error of another package on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _loaded(entry: EntryPoint, fault: Callable[[Any, str], str | None]) -> tuple[Any, str | None]:
    try:
        thing = entry.load()
        reason = fault(thing, entry.name)
    except FAULTS as error:
        return None, f"which cannot be imported ({described(error)})"
    return (thing, None) if reason is None else (None, reason)
