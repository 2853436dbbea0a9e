"""All kinds of losses: graceful's own, and those of other packages through the entry-point group `graceful.losses`.

An entry point's name is the kind, its value the class, e.g. in another package's pyproject.toml:

    [project.entry-points."graceful.losses"]
    my_loss = "my_package.my_loss:MyLoss"

Imports no torch. A package that cannot be imported makes its own kinds unavailable, with the reason, and nothing else.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union

from pydantic import Field

import graceful.losses
from graceful.losses.base import Loss

GROUP = "graceful.losses"


def kinds() -> Mapping[str, type[Loss]]:
    """Return the class of each kind that can be used, graceful's own first."""
    return _registered()[0]


def unavailable() -> Mapping[str, str]:
    """Return why a kind cannot be used, for the kinds of other packages that failed."""
    return _registered()[1]


def union() -> Any:
    """Return the annotation of one loss in a spec: a union of all kinds, told apart by `kind`."""
    return Annotated[Union[tuple(kinds().values())], Field(discriminator="kind")]  # noqa: UP007


def searched() -> tuple[type[Loss], ...]:
    """Return the classes whose weight a search may vary."""
    return tuple(loss for loss in kinds().values() if loss.search_range is not None)


def is_own(loss: type[Loss]) -> bool:
    """Return whether a class is graceful's own."""
    return loss.__module__.startswith("graceful.losses.")


def kind_of(loss: type[Loss]) -> str:
    """Return the name of a class of losses."""
    return str(loss.model_fields["kind"].default)


@functools.cache
def _registered() -> tuple[dict[str, type[Loss]], dict[str, str]]:
    available = {kind_of(loss): loss for loss in sorted(_own(), key=lambda loss: (loss.place, kind_of(loss)))}
    reasons: dict[str, str] = {}
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        reason = _register(entry, available)
        if reason is not None:
            package = entry.dist.name if entry.dist else "a package"
            reasons[entry.name] = f"{package} offers the loss {entry.name} as {entry.value}, {reason}"
    return available, reasons


def _own() -> Iterator[type[Loss]]:
    """Find the losses of the modules beside this one."""
    for module in pkgutil.iter_modules(graceful.losses.__path__, "graceful.losses."):
        if module.ispkg:
            continue
        for _, value in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(value, Loss) and value is not Loss and value.__module__ == module.name:
                yield value


def _register(entry: importlib.metadata.EntryPoint, available: dict[str, type[Loss]]) -> str | None:
    """Add the class of an entry point; returns why it cannot be used, None where it can."""
    if entry.name in available:
        return f"which is taken: {available[entry.name].__module__} has that kind"
    try:
        loss = entry.load()
    except (ImportError, AttributeError, SyntaxError, ValueError, TypeError, NameError, OSError) as error:
        return f"which cannot be imported ({type(error).__name__}: {error})"
    if not (inspect.isclass(loss) and issubclass(loss, Loss)):
        return "which is no class derived from graceful.losses.base.Loss"
    if kind_of(loss) != entry.name:
        return f"whose kind is {kind_of(loss)!r}; entry point and kind must have one name"
    available[entry.name] = loss
    return None
