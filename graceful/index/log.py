"""The commits of an index: numbered manifests, each of which can be written once. Driver.

The writer that creates the manifest of the next number has committed, and a second writer finds that the file exists.
This single operation of the place (`Place.create`) is the compare-and-set of the index and needs no lock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from graceful.errors import DataError, InfrastructureError, StorageError
from graceful.index.manifest import Manifest
from graceful.index.places import Place

FOLDER = "manifests"
_NAME = re.compile(r"([0-9]{8})\.json")


class MovedError(InfrastructureError):
    """Another writer committed first; its snapshot must be read before the next attempt."""


@dataclass(frozen=True)
class Log:
    """The manifests of an index.

    Attributes:
        place: The folder or bucket of the index.
    """

    place: Place
    _newest: list[int] = field(default_factory=list, repr=False, compare=False)
    """The number of the newest snapshot that was seen, from which a listing starts; empty before the first."""

    def numbers(self) -> list[int]:
        """Return the numbers of all snapshots, ascending; an empty list if there is no index."""
        return _numbers(self.place.names(FOLDER))

    def head(self) -> Manifest:
        """Return the newest snapshot.

        Raises:
            DataError: The place holds no index, or one of a later format.
            IntegrityError: The manifest was altered.
        """
        numbers = self._since() or self.numbers()
        if not numbers:
            raise DataError(f"{self.place}: holds no index; make one with `graceful index build {self.place}`")
        self._newest[:] = numbers[-1:]
        return self.read(numbers[-1])

    def _since(self) -> list[int]:
        """Return the newest number that was seen and those that follow; an empty list if it does not exist any more.

        This avoids a listing of all manifests, which takes one request for each thousand of them.
        """
        if not self._newest:
            return []
        known = self._newest[-1]
        numbers = _numbers(self.place.names(FOLDER, after=_file(known - 1)))
        return numbers if numbers[:1] == [known] else []

    def read(self, number: int) -> Manifest:
        """Return a snapshot.

        Raises:
            DataError: There is no snapshot of that number.
            IntegrityError: The manifest was altered.
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
        """Write a manifest as the newest one if its number is still free.

        Raises:
            MovedError: Another writer was faster.
            StorageError: The disk is full, or the manifest cannot be written.
        """
        if not self.place.create(_name(manifest.number), manifest.dumps().encode()):
            raise MovedError(
                f"{self.place}: another writer committed snapshot {manifest.number} meanwhile; run the same command"
                " again"
            )
        return manifest


def _numbers(names: list[str]) -> list[int]:
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)


def _file(number: int) -> str:
    return f"{number:08d}.json"


def _name(number: int) -> str:
    return f"{FOLDER}/{_file(number)}"
