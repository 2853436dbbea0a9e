"""The manifest of a snapshot of an index: a JSON document that holds its own digest. Driver."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from graceful.errors import DataError, IntegrityError
from graceful.index.space import Space
from graceful.storage import sha256_json

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Part:
    """One immutable segment of a snapshot; if several segments hold an id, the last one decides.

    Attributes:
        file: The path of the segment below the place of the index.
        sha256: The digest of its bytes.
        space: The name of the space of its vectors; an empty text if it lists deleted ids.
        rows: The number of ids.
        bytes: The size of the file in bytes.
    """

    file: str
    sha256: str
    space: str
    rows: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A piecewise linear map from the scores between two spaces to the scores within the new space of a backfill.

    Attributes:
        query: The name of the space of the queries.
        gallery: The name of the space of the vectors.
        scores: [K] scores, ascending.
        expected: [K] the expected scores of the same pairs in the new space, ascending.
        pairs: The number of pairs of scores from which the map was computed.
    """

    query: str
    gallery: str
    scores: tuple[float, ...]
    expected: tuple[float, ...]
    pairs: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One snapshot of an index.

    Attributes:
        number: The number of the snapshot; the first is 1.
        time: The time of the commit in seconds since 1970.
        action: build, add, delete, backfill, move, accept, compact or rollback.
        reason: The reason that was given for the change.
        author: The person or job that made the change.
        backend: The kind of the backend.
        options: The options that open the backend.
        spaces: The spaces by name, including those without vectors.
        serving: The alias of the index: the name of the space whose queries it expects.
        writes: The name of the space to which new vectors must belong.
        payload: The kind of each payload column: text, integer, number or boolean.
        counts: The number of ids whose vector is in each space.
        parts: The segments that hold the vectors; empty if a server holds them.
        accepts: Pairs of spaces of different models, (queries, vectors), that the index allows to be compared.
        calibrations: The maps from scores between spaces to scores within the space `writes`.
        backfill: The state of the last backfill; None if none was begun or it was rolled back.
        content: The number of the snapshot that a rollback restored; 0 for other actions.
    """

    number: int
    time: float
    action: str
    reason: str = ""
    author: str = ""
    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)
    spaces: Mapping[str, Space]
    serving: str
    writes: str
    payload: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    accepts: tuple[tuple[str, str], ...] = ()
    calibrations: tuple[Calibration, ...] = ()
    backfill: Mapping[str, Any] | None = None
    content: int = 0

    @property
    def count(self) -> int:
        """The number of ids in the snapshot."""
        return sum(self.counts.values())

    def named(self, fingerprint: str) -> str | None:
        """Return the name of the space with a fingerprint; None if there is no such space."""
        return next((name for name, space in self.spaces.items() if space.fingerprint == fingerprint), None)

    def calibration(self, query: str, gallery: str) -> Calibration | None:
        """Return the calibration of the scores of queries of one space on vectors of another; None if there is none."""
        return next((item for item in self.calibrations if (item.query, item.gallery) == (query, gallery)), None)

    def after(self, **changes: Any) -> Self:
        """Return the next manifest, with some attributes changed."""
        return replace(self, number=self.number + 1, **{"reason": "", "author": "", "content": 0, **changes})

    def dumps(self) -> str:
        """Return the manifest as JSON with the digest of its content."""
        document = {"format": FORMAT, **asdict(self)}
        document["spaces"] = {name: space.document() for name, space in self.spaces.items()}
        return json.dumps({"sha256": sha256_json(document), **document}, indent=1) + "\n"

    @classmethod
    def loads(cls, text: str, *, where: str) -> Self:
        """Read a manifest that `dumps` wrote.

        Raises:
            DataError: The manifest is of a later format.
            IntegrityError: The text is not a manifest, or its content has another digest.
        """
        try:
            document = json.loads(text)
        except ValueError as e:
            raise IntegrityError(f"{where}: no manifest of an index ({e}); restore it from a backup") from e
        version = document.get("format") if isinstance(document, dict) else None
        if type(version) is int and version > FORMAT:
            raise DataError(
                f"{where}: an index of format {version}, this graceful reads up to {FORMAT}; install a later one"
            )
        if version != FORMAT:
            raise IntegrityError(f"{where}: no manifest of an index; restore it from a backup")
        written = document.pop("sha256", None)
        if sha256_json(document) != written:
            raise IntegrityError(f"{where}: was altered, its content has another digest; restore it from a backup")
        del document["format"]
        document["spaces"] = {key: Space.read(value, where=where) for key, value in document["spaces"].items()}
        document["parts"] = tuple(Part(**part) for part in document["parts"])
        document["accepts"] = tuple((query, gallery) for query, gallery in document["accepts"])
        document["calibrations"] = tuple(
            Calibration(**{**value, "scores": tuple(value["scores"]), "expected": tuple(value["expected"])})
            for value in document["calibrations"]
        )
        return cls(**document)
