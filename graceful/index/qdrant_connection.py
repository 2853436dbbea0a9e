"""The connection to a Qdrant, and the filters that points are asked for with. Driver.

The address is that of a server, or `file:///folder` for the local mode of its client, which searches exactly, serves
one process at a time and unpickles what it finds there: it is given by the environment and never by an index.
"""

from __future__ import annotations

import atexit
import hashlib
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import unquote, urlsplit

from graceful.errors import InfrastructureError, one_line

SECONDS = 60
"""For which an answer is waited for."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where the points are.

    Attributes:
        address: Of the server, or `file:///folder`.
        collection: Beginning of the names of its collections.
    """

    address: str
    collection: str

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Yield a client, which processes keep.

        Raises:
            InfrastructureError: The server does not answer or refuses, or the folder is another process's.
        """
        from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

        about = f"index in Qdrant, collections {self.collection}_*"
        try:
            yield _client(self.address)
        except UnexpectedResponse as e:
            raise InfrastructureError(f"{about}: refused ({one_line(e):.200}); check the server") from e
        except ApiException as e:
            raise InfrastructureError(
                f"{about}: the server does not answer ({one_line(e):.200}); nothing was changed, run the same command"
                " again"
            ) from e
        except (sqlite3.Error, OSError) as e:
            raise InfrastructureError(f"{about}: its folder cannot be used ({one_line(e):.200})") from e

    def name(self, space: str) -> str:
        """Return the name of a space's collection."""
        return f"{self.collection}_{hashlib.sha256(space.encode()).hexdigest()[:16]}"

    def names(self, client: Any) -> list[str]:
        """Return the names of the collections that there are."""
        own = re.compile(f"{self.collection}_[0-9a-f]{{16}}")
        return [found.name for found in client.get_collections().collections if own.fullmatch(found.name)]


@cache
def _client(address: str) -> Any:
    """Return the client of an address; the local mode lets a process open a folder once.

    Raises:
        InfrastructureError: Another process has the folder open.
    """
    from qdrant_client import QdrantClient

    parts = urlsplit(address)
    if parts.scheme != "file":
        place = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        return QdrantClient(url=place, api_key=parts.password, timeout=SECONDS, check_compatibility=False)
    try:
        client = QdrantClient(path=unquote(parts.path), force_disable_check_same_thread=True)
    except RuntimeError as e:
        raise InfrastructureError(
            f"index in Qdrant: another process uses {unquote(parts.path)}; the local mode serves one at a time, run a"
            " server for more"
        ) from e
    atexit.register(client.close)
    return client


def live(number: int, *conditions: Any) -> Any:
    """Return the filter of points that count in a snapshot and meet some conditions."""
    from qdrant_client.models import FieldCondition, Filter, Range

    born, died = (FieldCondition(key=key, range=Range(lte=number)) for key in ("born", "died"))
    return Filter(must=[born, *conditions], must_not=[died])


def later(key: str, number: int, *, until: int | None = None) -> Any:
    """Return the condition that a field has a later snapshot."""
    from qdrant_client.models import FieldCondition, Range

    return FieldCondition(key=key, range=Range(gt=number, lte=until))


def named(names: Iterable[str]) -> Any:
    """Return the condition that a point has one of some ids."""
    from qdrant_client.models import FieldCondition, MatchAny

    return FieldCondition(key="id", match=MatchAny(any=list(names)))
