"""From recorded parents to a chain: a walk over nodes, without mlflow, names or timestamps. Driver and client."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from graceful.errors import RegistryError
from graceful.lineage.schema import LineageRecord, Node


def trace(root: str, read: Callable[[str], LineageRecord]) -> list[LineageRecord]:
    """Return a version and all its ancestors, each once, every version before its own parents.

    Args:
        root: Identity of the version to start from.
        read: Identity -> its record.

    Returns:
        `root` first. Where a version has several parents, the first one recorded comes first.

    Raises:
        RegistryError: A version is its own ancestor, or `read` could not find a parent.
    """
    visited: set[str] = set()
    ordered: list[LineageRecord] = []
    path: list[tuple[LineageRecord, Iterator[Node]]] = []

    def enter(record: LineageRecord) -> None:
        visited.add(record.model_id)
        path.append((record, iter(record.parents[::-1])))

    enter(read(root))
    while path:
        record, parents = path[-1]
        parent = next(parents, None)
        if parent is None:
            ordered.append(record)
            path.pop()
        elif any(parent.model_id == open_.model_id for open_, _ in path):
            raise RegistryError(
                f"{record.label}: its recorded parent {parent.name} ({parent.model_id}) descends from it; the lineage"
                " was altered, restore lineage.json of one of them"
            )
        elif parent.model_id not in visited:
            enter(_parent(record, parent, read))
    return ordered[::-1]


def _parent(record: LineageRecord, parent: Node, read: Callable[[str], LineageRecord]) -> LineageRecord:
    try:
        return read(parent.model_id)
    except RegistryError as e:
        raise RegistryError(f"{record.label} has parent {parent.name}: {e.message}", e.facts) from e
