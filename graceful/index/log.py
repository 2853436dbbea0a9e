"""The commits of an index: numbered manifests, each of which can be written once. Driver.

Whoever makes the file of the next number has committed; whoever comes second finds it there. That one step of the place
(`Place.create`) is the compare-and-set, and needs no lock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from graceful.errors import DataError, InfrastructureError, StorageError
from graceful.index.manifest import Manifest
from graceful.index.places import Place

FOLDER = "manifests"
_NAME = re.compile(r"([0-9]{8})\.json")


class MovedError(InfrastructureError):
    """Another writer committed first; what it wrote must be read before trying again."""


@dataclass(frozen=True)
class Log:
    """The manifests of an index.

    Attributes:
        place: Where it lies.
    """

    place: Place

    def numbers(self) -> list[int]:
        """Return the numbers of all snapshots, ascending; empty: there is no index."""
        return sorted(int(match[1]) for match in map(_NAME.fullmatch, self.place.names(FOLDER)) if match)

    def head(self) -> Manifest:
        """Return the newest snapshot.

        Raises:
            DataError: There is no index.
            IntegrityError: Its manifest was altered.
        """
        numbers = self.numbers()
        if not numbers:
            raise DataError(f"{self.place}: holds no index; make one with `graceful index build {self.place}`")
        return self.read(numbers[-1])

    def read(self, number: int) -> Manifest:
        """Return a snapshot.

        Raises:
            DataError: There is none of that number.
            IntegrityError: Its manifest was altered.
        """
        name = _name(number)
        try:
            data = self.place.read(name)
        except StorageError:
            known = self.numbers()
            if number in known:
                raise
            span = f"{known[0]} to {known[-1]}" if known else "none"
            raise DataError(f"{self.place}: has no snapshot {number}; it has {span}") from None
        return Manifest.loads(data.decode("utf-8", errors="replace"), where=f"{self.place}/{name}")

    def commit(self, manifest: Manifest) -> Manifest:
        """Make a manifest the newest one, if its number is still free.

        Raises:
            MovedError: Another writer was faster.
            StorageError: The disk is full, or the place refuses.
        """
        if not self.place.create(_name(manifest.number), manifest.dumps().encode()):
            raise MovedError(
                f"{self.place}: another writer committed snapshot {manifest.number} meanwhile; run the same command"
                " again"
            )
        return manifest


def _name(number: int) -> str:
    return f"{FOLDER}/{number:08d}.json"
