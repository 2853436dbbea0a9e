"""The backend `qdrant`: vectors in a Qdrant server, in one collection for each space. Driver.

Each point records the first snapshot that it belongs to (`born`) and the first that it does not (`died`), as the rows
of `graceful.index.postgres` do. Qdrant has no transactions, but points that were staged and not committed have a number
above the newest snapshot, so readers do not see them, and the next writer removes them.
"""

from __future__ import annotations

import re
import secrets
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError, SpecError
from graceful.index import exact as truth
from graceful.index import servers
from graceful.index.base import Changes, Hits
from graceful.index.manifest import Manifest, Part
from graceful.index.qdrant_connection import Connection, later, live, named
from graceful.index.vectors import Vectors

COLLECTION = re.compile(r"[a-z][a-z0-9_]{0,50}")
AT_ONCE, PAGE = 1000, 10_000
"""The number of points that one request writes or ids that it names, and the number of points that one reads."""
FIELDS = {"id": "keyword", "born": "integer", "died": "integer"}
"""The fields of the payload by which points are filtered, and their kinds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class QdrantView:
    """A snapshot in the server."""

    connection: Connection
    manifest: Manifest

    def _points(self, space: str, wanted: Any, *, payload: Any = True, vectors: bool = True) -> list[Any]:
        """Return the points of a space that meet a filter; an empty list if the space has no collection."""
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
            return int(client.count(name, count_filter=live(self.manifest.number), exact=True).count)

    def located(self, ids: NDArray[np.str_]) -> list[str]:
        """Return the space in which each id has its vector; an empty text if the index does not have the id."""
        found = {
            point.payload["id"]: space
            for space in self.manifest.spaces
            for part in servers.batches(ids.tolist(), AT_ONCE)
            for point in self._points(space, live(self.manifest.number, named(part)), payload=["id"], vectors=False)
        }
        return [found.get(name, "") for name in ids.tolist()]

    def ids(self, space: str) -> NDArray[np.str_]:
        """Return the ids whose vectors are in a space, sorted."""
        points = self._points(space, live(self.manifest.number), payload=["id"], vectors=False)
        return np.sort(servers.texts([point.payload["id"] for point in points]))

    def read(self, space: str, ids: NDArray[np.str_] | None = None) -> Vectors:
        """Return vectors of a space with their payload, sorted by id."""
        number = self.manifest.number
        filters = (
            [live(number)]
            if ids is None
            else [live(number, named(part)) for part in servers.batches(ids.tolist(), AT_ONCE)]
        )
        return self._vectors(space, [point for wanted in filters for point in self._points(space, wanted)])

    def superseded(self, space: str, ids: NDArray[np.str_]) -> Vectors:
        """Return the latest vectors that ids have or had in a space, sorted by id."""
        from qdrant_client.models import FieldCondition, Filter, Range

        latest: dict[str, Any] = {}
        for part in servers.batches(ids.tolist(), AT_ONCE):
            born = FieldCondition(key="born", range=Range(lte=self.manifest.number))
            for point in self._points(space, Filter(must=[born, named(part)])):
                known = latest.get(point.payload["id"])
                if known is None or known.payload["born"] < point.payload["born"]:
                    latest[point.payload["id"]] = point
        return self._vectors(space, latest.values())

    def _vectors(self, space: str, points: Iterable[Any]) -> Vectors:
        return servers.vectors([_row(point) for point in points], manifest=self.manifest, space=space)

    def search(self, queries: NDArray[np.float32], *, space: str, k: int, exact: bool = False) -> Hits:
        """Return the k nearest vectors of a space as the server finds them, or exactly by reading the whole space."""
        from qdrant_client.models import QueryRequest

        if exact:
            known = self.read(space)
            return truth.search(queries, known.vectors, known.ids, k)
        name, found = self.connection.name(space), list[servers.Candidate]()
        requests = [
            QueryRequest(
                query=query,
                filter=live(self.manifest.number),
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
        index: The folder of the index, which holds its manifests.
        connection: The address of the server and its collections.
        kind: The name of the backend in manifests.
    """

    index: Path
    connection: Connection
    kind: str = field(default="qdrant", init=False)

    def options(self) -> dict[str, Any]:
        """Return the options that open this backend again; the address comes from the environment."""
        return {"collection": self.connection.collection}

    def writing(self) -> AbstractContextManager[None]:
        """Lock the index against other writers until a commit is made or given up."""
        return servers.sole_writer(self.index)

    def stage(self, head: Manifest, changes: Changes) -> tuple[Part, ...]:
        """Write the points of the next snapshot."""
        gone = [*changes.deleted.tolist(), *(name for made in changes.upserts.values() for name in made.ids.tolist())]
        with self.connection.client() as client:
            for name in self._prepared(client, head):
                for part in servers.batches(gone, AT_ONCE):
                    client.set_payload(name, {"died": head.number + 1}, points=live(head.number, named(part)))
            for space, made in changes.upserts.items():
                for start in range(0, len(made), AT_ONCE):
                    rows = np.arange(start, min(start + AT_ONCE, len(made)))
                    self._insert(client, space, head.number + 1, _rows(made.take(rows)))
        return ()

    def _prepared(self, client: Any, head: Manifest) -> list[str]:
        """Remove points that were staged and not committed, and return the names of the collections of the index.

        Raises:
            SpecError: The index is new and a collection of its name exists, which may belong to another index.
        """
        from qdrant_client.models import Filter

        names = self.connection.names(client)
        if names and head.number == 0:
            raise SpecError(
                f"index backend qdrant: the server has a collection {names[0]}, maybe of another index; leave --option"
                " collection out, or delete it"
            )
        for name in names:
            client.delete(name, Filter(must=[later("born", head.number)]))
            client.delete_payload(name, ["died"], Filter(must=[later("died", head.number)]))
        return names

    def _insert(self, client: Any, space: str, number: int, rows: Sequence[servers.Row]) -> None:
        """Write points that belong to snapshots from a number on; create their collection if it is missing."""
        from qdrant_client.models import Distance, PointStruct, VectorParams

        name = self.connection.name(space)
        if rows and not client.collection_exists(name):
            client.create_collection(name, VectorParams(size=len(rows[0][1]), distance=Distance.COSINE))
            if not self.connection.address.startswith("file:"):  # the local mode has no such indices and would warn
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
                alive = now._points(space, live(head.number), payload=False, vectors=False)
                present = {point.id for point in alive}
                wanted = then._points(space, live(target.number))
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
        """Return the ids that commits between two snapshots have written or deleted."""
        from qdrant_client.models import Filter

        span = Filter(should=[later(key, before.number, until=after.number) for key in ("born", "died")])
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
        """Compare the counts in the server with the manifest, and check ids and lengths of vectors."""
        view, problems, seen = self.view(manifest), list[str](), set[str]()
        for space in manifest.spaces:
            points = view._points(space, live(manifest.number), payload=["id"])
            if len(points) != manifest.counts.get(space, 0):
                problems.append(f"space {space}: {len(points)} ids, the manifest says {manifest.counts.get(space, 0)}")
            for point in points:
                if point.payload["id"] in seen:
                    problems.append(f"id {point.payload['id']!a} has several vectors")
                seen.add(point.payload["id"])
            bad = sum(not abs(float(np.linalg.norm(point.vector)) - 1.0) < 1e-3 for point in points)
            problems += [f"space {space}: {bad} vectors have not unit length"] if bad else []
        return problems


def _rows(made: Vectors) -> list[servers.Row]:
    """Return vectors as rows."""
    columns = {key: column.tolist() for key, column in made.payload.items()}
    payload = [{key: column[row] for key, column in columns.items()} for row in range(len(made))]
    return list(zip(made.ids.tolist(), made.vectors.tolist(), payload, strict=True))


def _row(point: Any) -> servers.Row:
    """Return the id, the vector and the payload of a point."""
    return point.payload["id"], point.vector, point.payload["payload"]


def opened(folder: Path, options: Mapping[str, Any]) -> QdrantBackend:
    """Return the backend of an index.

    Raises:
        SpecError: qdrant-client is not installed, the address is missing or not valid, or an option is wrong.
        DataError: The name of the collection is not valid.
    """
    try:
        import qdrant_client  # noqa: F401  refuse now, not at the first query
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
