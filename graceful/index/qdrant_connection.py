"""The connection to Qdrant, and the filters by which points are selected. Driver.

The address is that of a server, or `file:///folder` for the local mode of its client. The local mode searches exactly,
serves one process at a time and unpickles the files of its folder, so the address comes from the environment and never
from an index.
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
"""The most seconds that the client waits for an answer."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """The address of the collections of an index.

    Attributes:
        address: The address of the server, or `file:///folder`.
        collection: The prefix of the names of the collections.
    """

    address: str
    collection: str

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Yield the client of the address, which the process keeps open.

        Raises:
            InfrastructureError: The server does not answer or refuses, or another process uses the folder.
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
        """Return the name of the collection of a space."""
        return f"{self.collection}_{hashlib.sha256(space.encode()).hexdigest()[:16]}"

    def names(self, client: Any) -> list[str]:
        """Return the names of the collections of the index that exist."""
        own = re.compile(f"{self.collection}_[0-9a-f]{{16}}")
        return [found.name for found in client.get_collections().collections if own.fullmatch(found.name)]


@cache
def _client(address: str) -> Any:
    """Return the client of an address; it is cached because the local mode opens a folder only once in a process.

    Raises:
        InfrastructureError: Another process uses the folder.
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
    """Return the filter for points that belong to a snapshot and meet further conditions."""
    from qdrant_client.models import FieldCondition, Filter, Range

    born, died = (FieldCondition(key=key, range=Range(lte=number)) for key in ("born", "died"))
    return Filter(must=[born, *conditions], must_not=[died])


def later(key: str, number: int, *, until: int | None = None) -> Any:
    """Return the condition that the number in a field is greater than `number` and at most `until`."""
    from qdrant_client.models import FieldCondition, Range

    return FieldCondition(key=key, range=Range(gt=number, lte=until))


def named(names: Iterable[str]) -> Any:
    """Return the condition that the id of a point is one of some names."""
    from qdrant_client.models import FieldCondition, MatchAny

    return FieldCondition(key="id", match=MatchAny(any=list(names)))
