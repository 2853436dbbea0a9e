"""What one snapshot of an index consists of, as a JSON document with its own digest. Driver."""

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
    """One immutable piece of a snapshot; where an id is in several, the last one decides.

    Attributes:
        file: Below the index's folder; for servers, a name of theirs.
        sha256: Of its bytes.
        space: Whose vectors it holds; empty: ids that are deleted.
        rows: How many.
        bytes: Size.
    """

    file: str
    sha256: str
    space: str
    rows: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How scores of one kind become comparable with those of the space that an index moves to.

    Attributes:
        query: Space of the queries.
        gallery: Space of the vectors.
        scores: [K] ascending.
        expected: [K] ascending, what the score of the same pair is expected to be in the new space; linear in between.
        pairs: From how many pairs of scores it was computed.
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
        number: From 1; each commit adds one.
        time: Seconds since 1970 of its commit.
        action: build, add, delete, backfill, move, accept, compact or rollback.
        reason: Why, as somebody wrote it.
        author: Who.
        backend: Kind of the backend.
        options: What opens it.
        spaces: Name -> space; also those that have no vectors any more.
        serving: The alias of the index: name of the space whose queries it expects.
        writes: Name of the space that new vectors must be of.
        payload: Column -> text, integer, number or boolean.
        counts: Name of a space -> ids whose vector is in it.
        parts: What holds the vectors.
        accepts: Pairs (space of queries, space of vectors) of different models that may be compared all the same.
        calibrations: How scores between spaces compare with those within `writes`.
        backfill: What a backfill recorded about itself; None: none was begun since the alias moved last.
        content: Number of the snapshot that a rollback brought back; 0: none.
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
        """How many ids it has."""
        return sum(self.counts.values())

    def named(self, fingerprint: str) -> str | None:
        """Return the name of the space with a fingerprint; None: there is none."""
        return next((name for name, space in self.spaces.items() if space.fingerprint == fingerprint), None)

    def calibration(self, query: str, gallery: str) -> Calibration | None:
        """Return how scores of queries of one space on vectors of another are calibrated; None: not at all."""
        return next((item for item in self.calibrations if (item.query, item.gallery) == (query, gallery)), None)

    def after(self, **changes: Any) -> Self:
        """Return the manifest that follows, with some attributes changed."""
        return replace(self, number=self.number + 1, **{"reason": "", "author": "", "content": 0, **changes})

    def dumps(self) -> str:
        """Return it as JSON with the digest of its content."""
        document = {"format": FORMAT, **asdict(self)}
        document["spaces"] = {name: space.document() for name, space in self.spaces.items()}
        return json.dumps({"sha256": sha256_json(document), **document}, indent=1) + "\n"

    @classmethod
    def loads(cls, text: str, *, where: str) -> Self:
        """Return a manifest that `dumps` wrote.

        Raises:
            DataError: It is of a later format, or no manifest.
            IntegrityError: Its content has another digest.
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
