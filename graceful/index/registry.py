"""The backends of an index by their kind. Driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graceful.errors import SpecError
from graceful.index.base import Backend
from graceful.index.places import Folder, Place


def _exact(place: Place, options: Mapping[str, Any]) -> Backend:
    from graceful.index.embedded import Embedded

    if options:
        raise SpecError(f"index backend exact: has no options, got {', '.join(sorted(options))}; leave them out")
    return Embedded(place=place)


def _faiss(place: Place, options: Mapping[str, Any]) -> Backend:
    from graceful.index import ann

    return ann.opened(place, options)


def _pgvector(place: Place, options: Mapping[str, Any]) -> Backend:
    from graceful.index import postgres

    return postgres.opened(_folder(place, "pgvector"), options)


def _qdrant(place: Place, options: Mapping[str, Any]) -> Backend:
    from graceful.index import qdrant

    return qdrant.opened(_folder(place, "qdrant"), options)


def _folder(place: Place, kind: str) -> Path:
    """Return the folder of an index whose backend locks it against other writers by a file.

    Raises:
        SpecError: The index is in a bucket, which has no locks.
    """
    if not isinstance(place, Folder):
        raise SpecError(
            f"index {place}: backend {kind} keeps a second writer out by a lock file, and a bucket has none; name a"
            " folder, or use --backend exact or faiss"
        )
    return place.path


KINDS: Mapping[str, Callable[[Place, Mapping[str, Any]], Backend]] = {
    "exact": _exact,
    "faiss": _faiss,
    "pgvector": _pgvector,
    "qdrant": _qdrant,
}


def opened(kind: str, place: Place, options: Mapping[str, Any]) -> Backend:
    """Open the backend of an index.

    Raises:
        SpecError: There is no backend of that kind, an option is wrong, or its package is not installed.
    """
    if kind not in KINDS:
        raise SpecError(f"index backend {kind!r}: must be one of {', '.join(KINDS)}")
    return KINDS[kind](place, options)


@contextmanager
def writing(backend: Backend) -> Iterator[None]:
    """Lock an index while its backend stages a commit, if the backend needs a lock; files of the index need none."""
    lock = getattr(backend, "writing", None)
    if lock is None:
        yield
        return
    with lock():
        yield
