"""All kinds of losses: graceful's own, and those of other packages through the entry-point group `graceful.losses`.

An entry point's name is the kind, its value the class, e.g. in another package's pyproject.toml:

    [project.entry-points."graceful.losses"]
    my_loss = "my_package.my_loss:MyLoss"

Imports no torch. A package that cannot be imported makes its own kinds unavailable, with the reason, and nothing else.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union, cast, get_args

from pydantic import Field

import graceful.losses
from graceful import plugins
from graceful.losses.base import Loss
from graceful.sections import Section

GROUP = "graceful.losses"


def kinds() -> Mapping[str, type[Loss]]:
    """Return the class of each kind that can be used, graceful's own first."""
    return _registered()[0]


def unavailable() -> Mapping[str, str]:
    """Return why a kind cannot be used, for the kinds of other packages that failed."""
    return _registered()[1]


def union() -> Any:
    """Return the annotation of one loss in a spec: a union of all kinds, distinguished by `kind`."""
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
    available = {kind_of(loss): loss for loss in sorted(_own(), key=lambda loss: (loss.order, kind_of(loss)))}
    names = {name: kind for kind, loss in available.items() for name in _search_names(loss)}
    reasons: dict[str, str] = {}

    def owner(kind: str) -> str | None:
        return available[kind].__module__ if kind in available else None

    def unfit(loss: object, kind: str) -> str | None:
        return fault(loss, kind, names)

    for kind, loss, reason in plugins.offered(GROUP, "loss", owner=owner, fault=unfit):
        if reason is not None:
            reasons[kind] = reason
        else:
            available[kind] = loss
            names.update(dict.fromkeys(_search_names(loss), kind))
    return available, reasons


def _own() -> Iterator[type[Loss]]:
    """Find the losses of the modules beside this one."""
    for module in pkgutil.iter_modules(graceful.losses.__path__, "graceful.losses."):
        if module.ispkg:
            continue
        for _, value in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(value, Loss) and value is not Loss and value.__module__ == module.name:
                yield value


def fault(loss: object, kind: str, names: Mapping[str, str]) -> str | None:
    """Return what is wrong with what another package offers; None: nothing.

    Args:
        loss: What its entry point leads to.
        kind: Name of the entry point.
        names: Names that a search knows already -> the kinds they belong to.
    """
    if not (inspect.isclass(loss) and issubclass(loss, Loss)):
        return "which is not a class derived from graceful.losses.base.Loss"
    return next(_faults(loss, kind, names), None)


def _faults(loss: type[Loss], kind: str, names: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with the class of another package; arguments as of `fault`."""
    if get_args(loss.model_fields["kind"].annotation) != (kind,) or kind_of(loss) != kind:
        written = f'kind: Literal["{kind}"] = "{kind}"'
        yield f"whose kind is {kind_of(loss)!r}; write {written}, the name of the entry point"
    if loss.compare is Loss.compare and loss.emphasis is Loss.emphasis:
        yield "which has neither compare nor emphasis; define one of them"
    if loss.merge is not Loss.merge and loss.compare_merged is Loss.compare_merged:
        yield "which merges but has no compare_merged; define it"
    if loss.compares_outputs and loss.search_range is None:
        yield "which compares outputs, so a search must vary its weight; give it a search_range"
    clashes = sorted(set(_search_names(loss)) & (set(names) | _RESERVED))
    if clashes:
        whose = names.get(clashes[0], "every search")
        yield f"whose search has a parameter {clashes[0]!r}, as {whose} has; give it another name"


_RESERVED = {"compare", "reference", "runs", "decay", "step", "against", "interpolation"}
"""Parameters of every search."""


class _Unwritten:
    """A section `tune.space` in which nothing is written: every key is None."""

    def __getattr__(self, name: str) -> None:
        return None


def _search_names(loss: type[Loss]) -> list[str]:
    """Return the names of the parameters that a loss has in a search, or as keys of `tune.space`."""
    if loss.search_range is None:
        return []
    options = loss.search_options(None, cast(Section, _Unwritten()))
    return list(dict.fromkeys([loss.weight_name(), *loss.search_keys(), *options]))
