"""Approximate search in PostgreSQL by an HNSW graph of pgvector, one for each space of an index. Driver."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from graceful.errors import SpecError

NAMES = ("links", "build", "beam")
LIMITS = {"links": (2, 100), "build": (4, 1000), "beam": (1, 1000)}
"""The bounds that pgvector sets; `build` must also be at least twice `links`."""
LONGEST = 2000
"""The largest dimension of a vector for which pgvector builds a graph."""
WITHOUT = "SET LOCAL enable_indexscan = off"
"""The statement that makes a transaction compare all vectors."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The parameters with which graphs are built and searched.

    Attributes:
        links: The number of neighbours of each vector (`m` of pgvector).
        build: The number of candidates for each vector when the graph is built (`ef_construction`).
        beam: The number of candidates for each query (`ef_search`).
    """

    links: int = 16
    build: int = 64
    beam: int = 100

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> Self | None:
        """Return the graph that the options of an index describe; None if they ask for none.

        Raises:
            SpecError: An option is out of range, or is given without index=hnsw.
        """
        kind = options.get("index", "flat")
        if kind not in ("flat", "hnsw"):
            raise SpecError(f"index backend pgvector: option index must be flat or hnsw, got {str(kind)[:60]!r}")
        given = {name: options[name] for name in NAMES if name in options}
        if kind == "flat":
            if given:
                raise SpecError(f"index backend pgvector: option {min(given)} is for index=hnsw; write that too")
            return None
        for name, value in given.items():
            low, high = LIMITS[name]
            text = str(value)
            if not (text.isascii() and text.isdigit() and len(text) < 5 and low <= int(text) <= high):
                raise SpecError(
                    f"index backend pgvector: option {name} must be a whole number from {low} to {high}, got"
                    f" {text[:60]!r}"
                )
        graph = cls(**{name: int(value) for name, value in given.items()})
        if graph.build < 2 * graph.links:
            raise SpecError(
                f"index backend pgvector: option build must be at least twice links, {2 * graph.links}, got"
                f" {graph.build}"
            )
        return graph

    def options(self) -> dict[str, Any]:
        """Return the options from which `read` makes this graph."""
        return {"index": "hnsw", **asdict(self)}

    def statement(self, table: str, space: str, dimension: int) -> str:
        """Return the SQL that creates the graph of a space if it is missing; its parameter is the name of the space.

        Raises:
            SpecError: The vectors are too long for a graph.
        """
        if dimension > LONGEST:
            raise SpecError(
                f"index backend pgvector: index=hnsw takes vectors of up to {LONGEST} numbers, {space} has {dimension};"
                " leave the option out"
            )
        return (
            f"CREATE INDEX IF NOT EXISTS {table}_{hashlib.sha256(space.encode()).hexdigest()[:8]} ON {table}"
            f" USING hnsw ((vector::vector({dimension})) vector_cosine_ops)"
            f" WITH (m = {self.links}, ef_construction = {self.build}) WHERE space = %s"
        )

    def settings(self, wanted: int) -> tuple[str, ...]:
        """Return the SQL that prepares a transaction for searches with a number of results.

        The scan passes over rows that do not belong to the snapshot, and goes on until it has found enough others.
        """
        return (
            f"SET LOCAL hnsw.ef_search = {min(max(self.beam, wanted), 1000)}",
            "SET LOCAL hnsw.iterative_scan = relaxed_order",
        )
