"""Packages of the extras `text` and `vision`, which load on first use. Driver and workers."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from graceful.errors import SpecError


def package(name: str) -> Any:
    """Import a package of the extras `text` and `vision`.

    Raises:
        SpecError: It is missing, or does not work with the others.
    """
    with working(name):
        return importlib.import_module(name)


@contextmanager
def working(name: str) -> Iterator[None]:
    """Turn into one line that a package cannot be imported; transformers imports parts of itself when they are used.

    Raises:
        SpecError: It is missing, or does not work with the others; why, and what to install.
    """
    try:
        yield
    except ImportError as e:
        raise _unusable(name, e) from e
    except RuntimeError as e:
        if "torchvision" not in str(e):
            raise
        raise _unusable(name, e) from e


def _unusable(name: str, error: BaseException) -> SpecError:
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    reason = " ".join(str(first).split())[:200]
    return SpecError(
        f"task.network.kind transformers: {name} cannot be imported ({reason}); pip install 'graceful-ai[text]', for"
        " images 'graceful-ai[vision]', and the torchvision build of the same torch or none"
    )
