"""Vectors in a Qdrant, a collection for each space. Driver.

Points say from which snapshot on they count and until which, as the rows of `graceful.index.postgres` do: what a writer
staged and never committed has a number above the newest snapshot, so that no reader sees it although Qdrant has no
transactions, and the next writer removes it first. The address is that of a server, or `file:///folder` for the local
mode of its client, which searches exactly, serves one process at a time and unpickles what it finds there: it is given
by the environment and never by an index.
"""

from __future__ import annotations

import atexit
import hashlib
import re
import secrets
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError, InfrastructureError, SpecError, one_line
from graceful.index import exact as truth
from graceful.index import servers
from graceful.index.base import Changes, Hits
from graceful.index.manifest import Manifest, Part
from graceful.index.vectors import Vectors

COLLECTION = re.compile(r"[a-z][a-z0-9_]{0,50}")
AT_ONCE, PAGE = 1000, 10_000
"""Points that are written, or ids that are asked for, with one request; and points that are read with one."""
SECONDS = 60
"""For which an answer is waited for."""
FIELDS = {"id": "keyword", "born": "integer", "died": "integer"}
"""What points are found by."""


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


def _live(number: int, *conditions: Any) -> Any:
    """Return the filter of points that count in a snapshot and meet some conditions."""
    from qdrant_client.models import FieldCondition, Filter, Range

    born, died = (FieldCondition(key=key, range=Range(lte=number)) for key in ("born", "died"))
    return Filter(must=[born, *conditions], must_not=[died])


def _after(key: str, number: int, *, until: int | None = None) -> Any:
    """Return the condition that a field has a later snapshot."""
    from qdrant_client.models import FieldCondition, Range

    return FieldCondition(key=key, range=Range(gt=number, lte=until))


def _named(names: Iterable[str]) -> Any:
    """Return the condition that a point has one of some ids."""
    from qdrant_client.models import FieldCondition, MatchAny

    return FieldCondition(key="id", match=MatchAny(any=list(names)))


@dataclass(frozen=True, kw_only=True, eq=False)
class QdrantView:
    """One snapshot in the server."""

    connection: Connection
    manifest: Manifest

    def _points(self, space: str, wanted: Any, *, payload: Any = True, vectors: bool = True) -> list[Any]:
        """Return the points of a space that meet a filter; none where it has no collection."""
        found, place = list[Any](), None
        name = self.connection.name(space)
        with self.connection.client() as client:
            if not client.collection_exists(name):
                return found
            while True:
                points, place = client.scroll(
                    name,
                    scroll_filter=wanted,
                    limit=PAGE,
                    offset=place,
                    with_payload=payload,
                    with_vectors=vectors,
                )
                found += points
                if place is None:
                    return found

    def count(self, space: str) -> int:
        """Return how many ids have their vector in a space."""
        name = self.connection.name(space)
        with self.connection.client() as client:
            if not client.collection_exists(name):
                return 0
            return int(client.count(name, count_filter=_live(self.manifest.number), exact=True).count)

    def located(self, ids: NDArray[np.str_]) -> list[str]:
        """Return the space in which each id has its vector; empty: the index has no such id."""
        found = {
            point.payload["id"]: space
            for space in self.manifest.spaces
            for part in servers.batches(ids.tolist(), AT_ONCE)
            for point in self._points(space, _live(self.manifest.number, _named(part)), payload=["id"], vectors=False)
        }
        return [found.get(name, "") for name in ids.tolist()]

    def ids(self, space: str) -> NDArray[np.str_]:
        """Return the ids whose vectors are in a space, sorted."""
        points = self._points(space, _live(self.manifest.number), payload=["id"], vectors=False)
        return np.sort(servers.texts([point.payload["id"] for point in points]))

    def read(self, space: str, ids: NDArray[np.str_] | None = None) -> Vectors:
        """Return vectors of a space with their payload, sorted by id."""
        number = self.manifest.number
        filters = (
            [_live(number)]
            if ids is None
            else [_live(number, _named(part)) for part in servers.batches(ids.tolist(), AT_ONCE)]
        )
        return self._vectors(space, [point for wanted in filters for point in self._points(space, wanted)])

    def superseded(self, space: str, ids: NDArray[np.str_]) -> Vectors:
        """Return the latest vectors that some ids have or had in a space, sorted by id."""
        from qdrant_client.models import FieldCondition, Filter, Range

        latest: dict[str, Any] = {}
        for part in servers.batches(ids.tolist(), AT_ONCE):
            born = FieldCondition(key="born", range=Range(lte=self.manifest.number))
            for point in self._points(space, Filter(must=[born, _named(part)])):
                known = latest.get(point.payload["id"])
                if known is None or known.payload["born"] < point.payload["born"]:
                    latest[point.payload["id"]] = point
        return self._vectors(space, latest.values())

    def _vectors(self, space: str, points: Iterable[Any]) -> Vectors:
        return servers.vectors([_row(point) for point in points], manifest=self.manifest, space=space)

    def search(self, queries: NDArray[np.float32], *, space: str, k: int, exact: bool = False) -> Hits:
        """Return the k nearest vectors of a space, as the server finds them; or exactly, by reading all of it."""
        from qdrant_client.models import QueryRequest

        if exact:
            known = self.read(space)
            return truth.search(queries, known.vectors, known.ids, k)
        name, found = self.connection.name(space), list[servers.Candidate]()
        requests = [
            QueryRequest(
                query=query,
                filter=_live(self.manifest.number),
                limit=k + 4,
                with_vector=True,
                with_payload=["id"],
            )
            for query in queries.tolist()
        ]
        with self.connection.client() as client:
            if client.collection_exists(name):
                answers = [
                    answer
                    for part in servers.batches(requests, 100)
                    for answer in client.query_batch_points(name, part)
                ]
                found = [
                    (number, point.payload["id"], point.vector)
                    for number, answer in enumerate(answers)
                    for point in answer.points
                ]
        return servers.best(found, queries, k=k)


@dataclass(frozen=True, kw_only=True)
class QdrantBackend:
    """Collections of vectors.

    Attributes:
        index: Folder of the index, with its manifests.
        connection: To the server.
    """

    index: Path
    connection: Connection
    kind: str = field(default="qdrant", init=False)

    def options(self) -> dict[str, Any]:
        """Return what opens this backend again; the address comes from the environment."""
        return {"collection": self.connection.collection}

    def writing(self) -> AbstractContextManager[None]:
        """Keep other writers out until a commit is made or given up."""
        return servers.sole_writer(self.index)

    def stage(self, head: Manifest, changes: Changes) -> tuple[Part, ...]:
        """Write the points of the next snapshot."""
        gone = [*changes.deleted.tolist(), *(name for made in changes.upserts.values() for name in made.ids.tolist())]
        with self.connection.client() as client:
            for name in self._prepared(client, head):
                for part in servers.batches(gone, AT_ONCE):
                    client.set_payload(name, {"died": head.number + 1}, points=_live(head.number, _named(part)))
            for space, made in changes.upserts.items():
                columns = {key: column.tolist() for key, column in made.payload.items()}
                payload = [{key: column[row] for key, column in columns.items()} for row in range(len(made))]
                rows = list(zip(made.ids.tolist(), made.vectors.tolist(), payload, strict=True))
                self._insert(client, space, head.number + 1, rows)
        return ()

    def _prepared(self, client: Any, head: Manifest) -> list[str]:
        """Remove what a writer staged and never committed, and return the names of the collections that there are.

        Raises:
            SpecError: A new index finds a collection of its name, whose points belong to another one.
        """
        from qdrant_client.models import Filter

        names = self.connection.names(client)
        if names and head.number == 0:
            raise SpecError(
                f"index backend qdrant: the server has a collection {names[0]}, maybe of another index; leave --option"
                " collection out, or delete it"
            )
        for name in names:
            client.delete(name, Filter(must=[_after("born", head.number)]))
            client.delete_payload(name, ["died"], Filter(must=[_after("died", head.number)]))
        return names

    def _insert(self, client: Any, space: str, number: int, rows: Sequence[servers.Row]) -> None:
        """Write points that count from a snapshot on; their collection is made if missing."""
        from qdrant_client.models import Distance, PointStruct, VectorParams

        name = self.connection.name(space)
        if rows and not client.collection_exists(name):
            client.create_collection(name, VectorParams(size=len(rows[0][1]), distance=Distance.COSINE))
            if not self.connection.address.startswith("file:"):  # the local mode has no such indices, and warns
                for key, kind in FIELDS.items():
                    client.create_payload_index(name, key, kind)
        for part in servers.batches(rows, AT_ONCE):
            points = [
                PointStruct(
                    id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{number} {row}")),
                    vector=list(vector),
                    payload={"id": row, "born": number, "payload": payload},
                )
                for row, vector, payload in part
            ]
            client.upsert(name, points)

    def revert(self, head: Manifest, target: Manifest) -> tuple[Part, ...]:
        """Stage the content of an older snapshot as that of the next one."""
        now, then = self.view(head), self.view(target)
        with self.connection.client() as client:
            self._prepared(client, head)
            for space in {**head.spaces, **target.spaces}:
                alive = now._points(space, _live(head.number), payload=False, vectors=False)
                present = {point.id for point in alive}
                wanted = then._points(space, _live(target.number))
                gone = sorted(present - {point.id for point in wanted})
                for part in servers.batches(gone, AT_ONCE):
                    client.set_payload(self.connection.name(space), {"died": head.number + 1}, points=part)
                back = [_row(point) for point in wanted if point.id not in present]
                self._insert(client, space, head.number + 1, back)
        return ()

    def view(self, manifest: Manifest) -> QdrantView:
        """Open a snapshot."""
        return QdrantView(connection=self.connection, manifest=manifest)

    def changed(self, before: Manifest, after: Manifest) -> NDArray[np.str_]:
        """Return the ids whose vectors were written by the commits between two snapshots."""
        from qdrant_client.models import Filter

        span = Filter(should=[_after(key, before.number, until=after.number) for key in ("born", "died")])
        view = self.view(after)
        return servers.texts(
            sorted(
                {
                    point.payload["id"]
                    for space in after.spaces
                    for point in view._points(space, span, payload=["id"], vectors=False)
                }
            )
        )

    def verify(self, manifest: Manifest) -> list[str]:
        """Compare counts, ids and lengths in the server with what the manifest says."""
        view, problems, seen = self.view(manifest), list[str](), set[str]()
        for space in manifest.spaces:
            points = view._points(space, _live(manifest.number), payload=["id"])
            if len(points) != manifest.counts.get(space, 0):
                problems.append(f"space {space}: {len(points)} ids, the manifest says {manifest.counts.get(space, 0)}")
            for point in points:
                if point.payload["id"] in seen:
                    problems.append(f"id {point.payload['id']!a} has several vectors")
                seen.add(point.payload["id"])
            bad = sum(not abs(float(np.linalg.norm(point.vector)) - 1.0) < 1e-3 for point in points)
            problems += [f"space {space}: {bad} vectors have not unit length"] if bad else []
        return problems


def _row(point: Any) -> servers.Row:
    """Return what a point holds."""
    return point.payload["id"], point.vector, point.payload["payload"]


def opened(folder: Path, options: Mapping[str, Any]) -> QdrantBackend:
    """Return the backend of an index.

    Raises:
        SpecError: The client or the address is missing, or an option is wrong.
    """
    try:
        import qdrant_client  # noqa: F401  a line now rather than a traceback at the first question
    except ImportError as e:
        raise SpecError("index backend qdrant: needs qdrant-client; install graceful-ai[qdrant]") from e
    unknown = set(options) - {"collection"}
    if unknown:
        raise SpecError(f"index backend qdrant: has no option {min(unknown)!r}; it has collection")
    collection = str(options.get("collection") or f"graceful_{secrets.token_hex(6)}")
    if not COLLECTION.fullmatch(collection):
        raise DataError(
            f"index backend qdrant: collection {collection[:60]!r} must be lower-case letters, digits and _"
        )
    address = servers.address("qdrant", example="http://host:6333, or file:///folder for its local mode")
    if urlsplit(address).scheme not in ("http", "https", "file"):
        raise SpecError(
            "index backend qdrant: $GRACEFUL_INDEX_URL must begin with http://, https:// or file:///; what it holds is"
            " not shown, it may be secret"
        )
    return QdrantBackend(index=folder, connection=Connection(address=address, collection=collection))
