"""Keyword arguments that a spec gives to code of a user or of another package. Driver and workers."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from graceful.errors import SpecError


def require_options(made_by: Callable[..., Any], options: dict[str, Any], *, key: str, what: str) -> None:
    """Refuse options that a function does not take, and those that it needs and has not got.

    Args:
        made_by: A function or class.
        options: From the spec.
        key: Where they stand in the spec, e.g. `task.options`.
        what: The function, for messages.

    Raises:
        SpecError: With the name of the first culprit.
    """
    parameters = inspect.signature(made_by).parameters.values()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for option in options:
        if option not in named and not takes_any:
            close = difflib.get_close_matches(option, named, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(named) or 'no options'}"
            raise SpecError(f"{key}.{option}: {what} takes no such option; {hint}")
    for name, parameter in named.items():
        if name not in options and parameter.default is parameter.empty:
            raise SpecError(f"{key}.{name}: required by {what} and missing; add it")
