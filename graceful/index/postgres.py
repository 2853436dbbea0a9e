"""The backend `pgvector`: vectors in a PostgreSQL server with the extension pgvector. Driver.

Each row records the first snapshot that it belongs to (`born`) and the first that it does not (`died`), so a snapshot
is a condition on rows. Rows that were staged and not committed have a number above the newest snapshot: readers do not
see them, and the next writer removes them. A lock file beside the manifests admits one writer at a time. The server
compares all vectors of a space, or follows the graph of `graceful.index.postgres_graph`.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError, InfrastructureError, SpecError, one_line
from graceful.index import exact as truth
from graceful.index import postgres_graph, servers
from graceful.index.base import Changes, Hits
from graceful.index.manifest import Manifest, Part
from graceful.index.postgres_graph import Graph
from graceful.index.vectors import Vectors

TABLE = re.compile(r"[a-z][a-z0-9_]{0,50}")
AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class Connection:
    """The address of a table; each query opens a connection of its own.

    Attributes:
        address: The address of the server, as libpq reads it.
        table: The name of the table.
    """

    address: str
    table: str

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        """Yield a cursor in a transaction, which is committed at the end of the block.

        Raises:
            InfrastructureError: The server does not answer, closed the connection or refused a statement.
        """
        import psycopg2

        try:
            with (
                closing(psycopg2.connect(self.address, connect_timeout=30)) as connection,
                connection,
                connection.cursor() as cursor,
            ):
                yield cursor
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as e:
            raise InfrastructureError(
                f"index in PostgreSQL, table {self.table}: the server does not answer ({one_line(e):.200}); nothing was"
                " changed, run the same command again"
            ) from e
        except psycopg2.Error as e:
            raise InfrastructureError(
                f"index in PostgreSQL, table {self.table}: refused ({one_line(e):.200}); check the server and its"
                " extension vector"
            ) from e


def _live(number: int) -> str:
    """Return the SQL condition of the rows of a snapshot."""
    return f"born <= {int(number)} AND (died IS NULL OR died > {int(number)})"


def _text(vector: NDArray[np.float32]) -> str:
    return "[" + ",".join(map(repr, vector.tolist())) + "]"


@dataclass(frozen=True, kw_only=True, eq=False)
class PostgresView:
    """A snapshot in the server."""

    connection: Connection
    manifest: Manifest
    graph: Graph | None = None

    def _rows(self, what: str, condition: str, arguments: tuple[Any, ...], ending: str = "") -> list[Any]:
        with self.connection.cursor() as cursor:
            cursor.execute(f"SELECT {what} FROM {self.connection.table} WHERE {condition} {ending}", arguments)
            rows: list[Any] = cursor.fetchall()
            return rows

    def count(self, space: str) -> int:
        """Return how many ids have their vector in a space."""
        return int(self._rows("count(*)", f"space = %s AND {_live(self.manifest.number)}", (space,))[0][0])

    def located(self, ids: NDArray[np.str_]) -> list[str]:
        """Return the space in which each id has its vector; an empty text if the index does not have the id."""
        found = dict(self._rows("id, space", f"id = ANY(%s) AND {_live(self.manifest.number)}", (ids.tolist(),)))
        return [found.get(name, "") for name in ids.tolist()]

    def ids(self, space: str) -> NDArray[np.str_]:
        """Return the ids whose vectors are in a space, sorted."""
        rows = self._rows("id", f"space = %s AND {_live(self.manifest.number)}", (space,))
        return np.sort(servers.texts([row[0] for row in rows]))

    def read(self, space: str, ids: NDArray[np.str_] | None = None) -> Vectors:
        """Return vectors of a space with their payload, sorted by id."""
        condition, arguments = f"space = %s AND {_live(self.manifest.number)}", tuple[Any, ...]((space,))
        if ids is not None:
            condition, arguments = f"{condition} AND id = ANY(%s)", (space, ids.tolist())
        return self._vectors(space, self._rows("id, vector::text, payload", condition, arguments))

    def superseded(self, space: str, ids: NDArray[np.str_]) -> Vectors:
        """Return the latest vectors that ids have or had in a space, sorted by id."""
        condition = f"space = %s AND id = ANY(%s) AND born <= {self.manifest.number}"
        what = "DISTINCT ON (id) id, vector::text, payload"
        rows = self._rows(what, condition, (space, ids.tolist()), "ORDER BY id, born DESC")
        return self._vectors(space, rows)

    def _vectors(self, space: str, rows: list[Any]) -> Vectors:
        read = [(name, json.loads(vector), payload) for name, vector, payload in rows]
        return servers.vectors(read, manifest=self.manifest, space=space)

    def search(self, queries: NDArray[np.float32], *, space: str, k: int, exact: bool = False) -> Hits:
        """Return the k nearest vectors of a space as the server finds them, or exactly by reading the whole space."""
        if exact:
            known = self.read(space)
            return truth.search(queries, known.vectors, known.ids, k)
        settings = () if self.graph is None else self.graph.settings(k + 4)
        found = self._nearest(queries, range(len(queries)), space=space, wanted=k + 4, settings=settings)
        if self.graph is not None:  # a graph with many replaced rows may lead to few of the others
            short = [number for number, rows in found.items() if len(rows) < k]
            found |= self._nearest(queries, short, space=space, wanted=k + 4, settings=(postgres_graph.WITHOUT,))
        candidates = [
            (number, name, json.loads(vector)) for number in range(len(queries)) for name, vector in found[number]
        ]
        return servers.best(candidates, queries, k=k)

    def _nearest(
        self,
        queries: NDArray[np.float32],
        numbers: Sequence[int],
        *,
        space: str,
        wanted: int,
        settings: Sequence[str],
    ) -> dict[int, list[Any]]:
        """Return the ids and vectors that the server finds for some of the queries, by the number of the query."""
        dimension, found = self.manifest.spaces[space].dimension, dict[int, list[Any]]()
        if not numbers:
            return found
        with self.connection.cursor() as cursor:
            for setting in settings:
                cursor.execute(setting)
            for number in numbers:
                cursor.execute(
                    f"SELECT id, vector::text FROM {self.connection.table} WHERE space = %s AND"
                    f" {_live(self.manifest.number)} ORDER BY vector::vector({dimension}) <=> %s::vector({dimension})"
                    " LIMIT %s",
                    (space, _text(queries[number]), wanted),
                )
                found[number] = cursor.fetchall()
        return found


@dataclass(frozen=True, kw_only=True)
class PostgresBackend:
    """A table of vectors.

    Attributes:
        index: The folder of the index, which holds its manifests.
        connection: The address of the server and the table.
        graph: The parameters of approximate search; None if the server compares all vectors.
        kind: The name of the backend in manifests.
    """

    index: Path
    connection: Connection
    graph: Graph | None = None
    kind: str = field(default="pgvector", init=False)

    def options(self) -> dict[str, Any]:
        """Return the options that open this backend again; the address comes from the environment."""
        return {"table": self.connection.table, **({} if self.graph is None else self.graph.options())}

    def writing(self) -> AbstractContextManager[None]:
        """Lock the index against other writers until a commit is made or given up."""
        return servers.sole_writer(self.index)

    def stage(self, head: Manifest, changes: Changes) -> tuple[Part, ...]:
        """Write the rows of the next snapshot."""
        with self.connection.cursor() as cursor:
            self._require_own(cursor, head)
            self._prepare(cursor, head)
            gone = [
                *changes.deleted.tolist(),
                *(name for made in changes.upserts.values() for name in made.ids.tolist()),
            ]
            self._execute(
                cursor,
                f"UPDATE {{table}} SET died = {head.number + 1} WHERE id = ANY(%s) AND {_live(head.number)}",
                (gone,),
            )
            for space, made in changes.upserts.items():
                self._insert(cursor, head.number + 1, space, made)
                if self.graph is not None:
                    cursor.execute(self.graph.statement(self.connection.table, space, made.dimension), (space,))
        return ()

    def _require_own(self, cursor: Any, head: Manifest) -> None:
        """Refuse to build a new index in a table that exists, because its rows may belong to another index.

        Raises:
            SpecError: The table exists.
        """
        cursor.execute("SELECT to_regclass(%s)", (self.connection.table,))
        if head.number == 0 and cursor.fetchone()[0] is not None:
            raise SpecError(
                f"index backend pgvector: the database has a table {self.connection.table}, maybe of another index;"
                " leave --option table out, or drop the table"
            )

    def _prepare(self, cursor: Any, head: Manifest) -> None:
        """Create the table, and remove rows that were staged and not committed."""
        cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
        self._execute(
            cursor,
            "CREATE TABLE IF NOT EXISTS {table} (id text NOT NULL, space text NOT NULL, vector vector NOT NULL,"
            " payload jsonb NOT NULL, born bigint NOT NULL, died bigint)",
        )
        self._execute(cursor, "CREATE INDEX IF NOT EXISTS {table}_ids ON {table} (id)")
        self._execute(cursor, f"DELETE FROM {{table}} WHERE born > {head.number}")
        self._execute(cursor, f"UPDATE {{table}} SET died = NULL WHERE died > {head.number}")

    def _execute(self, cursor: Any, statement: str, arguments: tuple[Any, ...] = ()) -> None:
        cursor.execute(statement.replace("{table}", self.connection.table), arguments)

    def _insert(self, cursor: Any, number: int, space: str, made: Vectors) -> None:
        from psycopg2.extras import execute_values

        columns = {name: column.tolist() for name, column in made.payload.items()}
        rows = (
            (
                name,
                space,
                _text(made.vectors[row]),
                json.dumps({key: column[row] for key, column in columns.items()}),
                number,
            )
            for row, name in enumerate(made.ids.tolist())
        )  # made as they are sent: as texts they take ten times the memory
        statement = f"INSERT INTO {self.connection.table} (id, space, vector, payload, born) VALUES %s"
        execute_values(cursor, statement, rows, page_size=AT_ONCE)

    def revert(self, head: Manifest, target: Manifest) -> tuple[Part, ...]:
        """Stage the content of an older snapshot as that of the next one."""
        now, then, following = _live(head.number), _live(target.number), head.number + 1
        with self.connection.cursor() as cursor:
            self._prepare(cursor, head)
            self._execute(
                cursor,
                "INSERT INTO {table} (id, space, vector, payload, born) SELECT id, space, vector, payload,"
                f" {following} FROM {{table}} WHERE {then} AND NOT ({now})",
            )
            self._execute(cursor, f"UPDATE {{table}} SET died = {following} WHERE {now} AND NOT ({then})")
        return ()

    def view(self, manifest: Manifest) -> PostgresView:
        """Open a snapshot."""
        return PostgresView(connection=self.connection, manifest=manifest, graph=self.graph)

    def changed(self, before: Manifest, after: Manifest) -> NDArray[np.str_]:
        """Return the ids that commits between two snapshots have written or deleted."""
        view = self.view(after)
        span = f"{before.number} AND {{0}} <= {after.number}"
        conditions = " OR ".join(f"({name} > {span.format(name)})" for name in ("born", "died"))
        rows = view._rows("DISTINCT id", conditions, ())
        return servers.texts(sorted(row[0] for row in rows))

    def verify(self, manifest: Manifest) -> list[str]:
        """Compare the counts in the server with the manifest, and check ids and lengths of vectors."""
        view, live = self.view(manifest), _live(manifest.number)
        problems = [
            f"space {name}: {view.count(name)} ids, the manifest says {manifest.counts.get(name, 0)}"
            for name in manifest.spaces
            if view.count(name) != manifest.counts.get(name, 0)
        ]
        doubled = view._rows("id", live, (), "GROUP BY id HAVING count(*) > 1 LIMIT 1")
        problems += [f"id {row[0]!a} has several vectors" for row in doubled]
        bad = view._rows("count(*)", f"{live} AND abs(vector_norm(vector) - 1) > 0.001", ())[0][0]
        return problems + ([f"{bad} vectors have not unit length"] if bad else [])


def opened(folder: Path, options: Mapping[str, Any]) -> PostgresBackend:
    """Return the backend of an index.

    Raises:
        SpecError: psycopg2 is not installed, the address is missing, or an option is wrong.
        DataError: The name of the table is not valid.
    """
    try:
        import psycopg2  # noqa: F401  refuse now, not at the first query
    except ImportError as e:
        raise SpecError("index backend pgvector: needs psycopg2; install graceful-ai[pgvector]") from e
    unknown = set(options) - {"table", "index", *postgres_graph.NAMES}
    if unknown:
        raise SpecError(
            f"index backend pgvector: has no option {min(unknown)!r}; it has table, index,"
            f" {', '.join(postgres_graph.NAMES)}"
        )
    graph = Graph.read(options)
    table = str(options.get("table") or f"graceful_index_{secrets.token_hex(6)}")
    if not TABLE.fullmatch(table):
        raise DataError(f"index backend pgvector: table {table[:60]!r} must be lower-case letters, digits and _")
    address = servers.address("pgvector", example="postgresql://user@host/database")
    return PostgresBackend(index=folder, connection=Connection(address=address, table=table), graph=graph)
