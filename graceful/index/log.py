"""The commits of an index: numbered manifests, each of which can be written once. Driver.

Whoever makes the file of the next number has committed; whoever comes second finds it there. That one step of the place
(`Place.create`) is the compare-and-set, and needs no lock.
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
    """Another writer committed first; what it wrote must be read before trying again."""


@dataclass(frozen=True)
class Log:
    """The manifests of an index.

    Attributes:
        place: Where it lies.
    """

    place: Place
    _newest: list[int] = field(default_factory=list, repr=False, compare=False)
    """Numbers of the newest snapshots that were seen; the last one is asked for first."""

    def numbers(self) -> list[int]:
        """Return the numbers of all snapshots, ascending; empty: there is no index."""
        return _numbers(self.place.names(FOLDER))

    def head(self) -> Manifest:
        """Return the newest snapshot.

        Raises:
            DataError: There is no index.
            IntegrityError: Its manifest was altered.
        """
        numbers = self._since() or self.numbers()
        if not numbers:
            raise DataError(f"{self.place}: holds no index; make one with `graceful index build {self.place}`")
        self._newest[:] = numbers[-1:]
        return self.read(numbers[-1])

    def _since(self) -> list[int]:
        """Return the newest number that was seen before and those that follow; empty: it is not there (any more).

        A listing of all manifests takes a request for each thousand of them.
        """
        if not self._newest:
            return []
        known = self._newest[-1]
        numbers = _numbers(self.place.names(FOLDER, after=_file(known - 1)))
        return numbers if numbers[:1] == [known] else []

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


def _numbers(names: list[str]) -> list[int]:
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)


def _file(number: int) -> str:
    return f"{number:08d}.json"


def _name(number: int) -> str:
    return f"{FOLDER}/{_file(number)}"
