"""Follow objects of an API server by lists and watches; every change is reported once. Client.

A watch is a long answer over one connection, and every part of that breaks: the version it starts from expires (410:
list again), the server is busy (429, 500: pause, longer each time, never in step with other clients) or the connection
dies without a word (each watch asks for a short time and silence beyond it counts as lost). What was listed or watched
is known by uid and resourceVersion, so that a repetition is dropped and a disappearance is noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from graceful.errors import InfrastructureError
from graceful.launch.backend import Document
from graceful.launch.kubernetes.kube import Listing, WatchEvent
from graceful.launch.refusals import ApiError, GoneError, may_pass
from graceful.patience import Patience

WINDOW = 30.0
"""Seconds that one watch asks for; the longest that a silently dead connection can go unnoticed, plus `wire`'s rest."""
GIVE_UP = 900.0
"""Seconds of failures in a row after which the last one is raised."""


class ChangeKind(StrEnum):
    """What happened to an object."""

    ADDED = "added"
    CHANGED = "changed"
    GONE = "gone"
    QUIET = "quiet"
    """Nothing, for the length of a window; a moment to look at things that have no watch."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change; the object of QUIET is empty, that of GONE is its last known state."""

    kind: ChangeKind
    object: Document = field(default_factory=dict)


class Source(Protocol):
    """The methods of `kube.Kube` that are needed here."""

    def list(self, kind: str, *, selector: str = "", fields: str = "") -> Listing:
        """Return a listing, as `Kube.list`."""
        ...

    def watch(
        self, kind: str, *, resource_version: str, seconds: float, selector: str = "", fields: str = ""
    ) -> Generator[WatchEvent, None, None]:
        """Yield events, as `Kube.watch`."""
        ...


def changes(
    source: Source,
    kind: str,
    *,
    selector: str = "",
    fields: str = "",
    window: Callable[[], float] = lambda: WINDOW,
    seconds: float | None = None,
    give_up: float = GIVE_UP,
    patience: Patience | None = None,
    warn: Callable[[ApiError], None] = lambda error: None,
) -> Generator[Change, None, None]:
    """Yield every change of every matching object, in order, each once; first what is there already, as ADDED.

    States between two looks may be missed when a connection is lost; the newest state never is.

    Args:
        source: The API server.
        kind: As in `kinds.KINDS`.
        selector: Labels.
        fields: Fields, e.g. `metadata.name=glyphs-v2`.
        window: Asked before each watch: its seconds.
        seconds: Overall deadline; None: until the caller stops asking.
        give_up: Seconds of failures in a row.
        patience: Pauses and clock.
        warn: Called with the first failure of each row.

    Raises:
        InfrastructureError: The overall deadline has passed.
        ApiError: It does not pass: forbidden, no such kind, or failing for `give_up` seconds.
    """
    follower = _Follower(
        source=source,
        kind=kind,
        match={"selector": selector, "fields": fields},
        patience=patience or Patience(first=0.5, longest=30.0),
        give_up=give_up,
        warn=warn,
    )
    end = None if seconds is None else follower.patience.now() + seconds
    while True:
        remaining = None if end is None else end - follower.patience.now()
        if remaining is not None and remaining <= 0:
            raise InfrastructureError(f"{kind} {fields or selector}: not over after {seconds:g} s; the run continues")
        yield from follower.round(window() if remaining is None else min(window(), remaining), end)


@dataclass(kw_only=True)
class _Follower:
    source: Source
    kind: str
    match: dict[str, str]
    patience: Patience
    give_up: float
    warn: Callable[[ApiError], None]
    version: str | None = None
    failures: int = 0
    failing_since: float = 0.0
    known: dict[str, Document] = field(default_factory=dict)

    def round(self, seconds: float, end: float | None) -> Iterator[Change]:
        """List if there is nothing to go on from, watch once; failures end the round, not the following."""
        try:
            if self.version is None:
                listing = self.source.list(self.kind, **self.match)
                self.version = listing.resource_version
                yield from self.compared(listing)
            watch = self.source.watch(self.kind, resource_version=self.version, seconds=seconds, **self.match)
            with closing(watch):
                for event in watch:
                    self.failures = 0
                    self.version = event.object["metadata"]["resourceVersion"]
                    yield from self.from_event(event)
                    if end is not None and self.patience.now() >= end:
                        return
            self.failures = 0
            yield Change(kind=ChangeKind.QUIET)
        except GoneError as e:
            self.version = None
            self.failed(e)
        except ApiError as e:
            if not may_pass(e):
                raise
            self.failed(e)

    def compared(self, listing: Listing) -> Iterator[Change]:
        """Yield the changes between a new list and the known objects, which no watch reported."""
        listed = {item["metadata"]["uid"]: item for item in listing.items}
        for uid in [uid for uid in self.known if uid not in listed]:
            yield Change(kind=ChangeKind.GONE, object=self.known.pop(uid))
        for item in listed.values():
            yield from self.updated(item)

    def from_event(self, event: WatchEvent) -> Iterator[Change]:
        """Yield the change that one event of a watch reports."""
        if event.type == "DELETED":
            if self.known.pop(event.object["metadata"]["uid"], None) is not None:
                yield Change(kind=ChangeKind.GONE, object=event.object)
        elif event.type in ("ADDED", "MODIFIED"):
            yield from self.updated(event.object)

    def updated(self, item: Document) -> Iterator[Change]:
        """Yield the change to an object as it is now, unless that is known."""
        uid = item["metadata"]["uid"]
        previous = self.known.get(uid)
        if previous is not None and previous["metadata"]["resourceVersion"] == item["metadata"]["resourceVersion"]:
            return
        self.known[uid] = item
        yield Change(kind=ChangeKind.ADDED if previous is None else ChangeKind.CHANGED, object=item)

    def failed(self, error: ApiError) -> None:
        """Pause, unless it has failed for too long."""
        now = self.patience.now()
        if self.failures == 0:
            self.failing_since = now
            self.warn(error)
        elif now - self.failing_since >= self.give_up:
            raise error
        self.failures += 1
        self.patience.pause(self.failures, error)
