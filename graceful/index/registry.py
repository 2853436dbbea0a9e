"""Which backends there are, found by their kind. Driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graceful.errors import SpecError
from graceful.index.base import Backend


def _exact(folder: Path, options: Mapping[str, Any]) -> Backend:
    from graceful.index.embedded import Embedded

    if options:
        raise SpecError(f"index backend exact: has no options, got {', '.join(sorted(options))}; leave them out")
    return Embedded(index=folder)


def _faiss(folder: Path, options: Mapping[str, Any]) -> Backend:
    from graceful.index import ann

    return ann.opened(folder, options)


def _pgvector(folder: Path, options: Mapping[str, Any]) -> Backend:
    from graceful.index import postgres

    return postgres.opened(folder, options)


def _qdrant(folder: Path, options: Mapping[str, Any]) -> Backend:
    from graceful.index import qdrant

    return qdrant.opened(folder, options)


KINDS: Mapping[str, Callable[[Path, Mapping[str, Any]], Backend]] = {
    "exact": _exact,
    "faiss": _faiss,
    "pgvector": _pgvector,
    "qdrant": _qdrant,
}


def opened(kind: str, folder: Path, options: Mapping[str, Any]) -> Backend:
    """Open the backend of an index.

    Raises:
        SpecError: There is none of that kind, an option is wrong, or its package is missing.
    """
    if kind not in KINDS:
        raise SpecError(f"index backend {kind!r}: must be one of {', '.join(KINDS)}")
    return KINDS[kind](folder, options)


@contextmanager
def writing(backend: Backend) -> Iterator[None]:
    """Keep other writers out while a backend that cannot hide half a commit stages one; files need no such lock."""
    lock = getattr(backend, "writing", None)
    if lock is None:
        yield
        return
    with lock():
        yield
