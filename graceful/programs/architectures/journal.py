"""What was measured, one line of JSON each, appended as it comes: a search that was killed reads it again. Driver."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from graceful.architectures.measuring import Measured
from graceful.architectures.space import Path as NetworkPath
from graceful.architectures.space import digest_of
from graceful.files import guarded
from graceful.models.cost import Latency

T = TypeVar("T")


@dataclass(frozen=True)
class Journal(Generic[T]):
    """Records by the digest of a path. A last line that was cut off is dropped, and so is what is not a record.

    Attributes:
        path: The path of the file; made when the first record is added.
        parse: JSON values -> record; raises TypeError or ValueError for others.
    """

    path: Path
    parse: Callable[[Mapping[str, Any]], T]
    known: dict[str, T] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.path.exists():
            return
        with guarded(self.path, "read"):
            raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        for line in whole.splitlines():
            try:
                row = json.loads(line)
                self.known[str(row["digest"])] = self.parse(row["record"])
            except (ValueError, TypeError, LookupError, RecursionError):
                continue
        if len(whole) < len(raw):
            with guarded(self.path, "write"):
                os.truncate(self.path, len(whole))

    def find(self, path: NetworkPath) -> T | None:
        """Return the record of a path; None: there is none."""
        return self.known.get(digest_of(path))

    def add(self, path: NetworkPath, record: T, **facts: Any) -> None:
        """Append a record, which outlives this process.

        Raises:
            StorageError: The disk is full, or refuses.
        """
        digest = digest_of(path)
        row = {"digest": digest, "path": path, **facts, "record": asdict(record)}  # type: ignore[call-overload]
        with guarded(self.path, "write"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self.known[digest] = record


def measurements(path: Path) -> Journal[Measured]:
    """Return the journal of scores."""
    return Journal(path, lambda row: Measured(**row))


def latencies(path: Path) -> Journal[Latency]:
    """Return the journal of latencies."""
    return Journal(path, lambda row: Latency(**row))
