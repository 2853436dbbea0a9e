"""Change the roles of versions: promote, roll back, hold, retire; read the history, repair. Runs in the driver.

The action comes as JSON on stdin; the command line checks its form. Runs in a process of its own beside the client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from graceful.errors import SpecError
from graceful.lineage import Store
from graceful.lineage.events import Event
from graceful.lineage.family import Key
from graceful.lineage.listing import Listed
from graceful.lineage.reference import Reference, find
from graceful.programs.messages import notifications
from graceful.programs.messages.notifications import time_of


@dataclass(frozen=True, kw_only=True)
class Action:
    """One thing to do, as the command line says it.

    Attributes:
        action: promote, rollback, hold, release, retire, history, repair.
        reference: Which version: `glyphs`, `glyphs:3`, `glyphs:v3`, `glyphs@previous`.
        reason: Why.
        author: Who.
        expect: Number of the champion that must be there now; 0: there must be none; None: whichever is.
        waive: Promote although held.
        force: Retire although champion.
        dry_run: Repair nothing, only tell.
        older_than: Hours after which a run of another machine is taken for dead.
    """

    action: str
    reference: str
    reason: str = ""
    author: str = ""
    expect: int | None = None
    waive: bool = False
    force: bool = False
    dry_run: bool = False
    older_than: float = 24.0


@dataclass(frozen=True, kw_only=True)
class Done:
    """What an action came to, as JSON values.

    Attributes:
        action: What was asked.
        model: Model family.
        version: Number of the version it was about.
        name: Its name.
        changed: Whether something had to be changed.
        champion: Number of the champion now.
        previous: Number that the next rollback goes to.
        event: MLflow run that records it; empty where nothing changed.
        ended_pairs: Of a retirement, the pairs of query model and gallery model that are live no more.
    """

    action: str
    model: str
    version: int
    name: str
    changed: bool
    champion: int | None
    previous: int | None
    event: str
    ended_pairs: tuple[str, ...] = ()

    def sentence(self) -> str:
        """Return one line for people."""
        aliases = f"champion is {_number(self.champion)}, previous {_number(self.previous)}"
        what = _PAST[self.action] if self.changed else "nothing to do"
        ended = f"; ended pairs: {', '.join(self.ended_pairs)}" if self.ended_pairs else ""
        return f"{self.model} {self.name or ''} (version {self.version}): {what}; {aliases}{ended}"


_KINDS: Mapping[str, str] = {
    "promote": "promotion",
    "rollback": "rollback",
    "hold": "hold",
    "release": "release",
    "retire": "retirement",
}
_PAST: Mapping[str, str] = {
    "promote": "promoted",
    "rollback": "is champion again",
    "hold": "held",
    "release": "released",
    "retire": "retired",
}


def act(action: Action, home: Path) -> Done:
    """Change what a version is for.

    Raises:
        SpecError: There is no such version, or the action is not possible for it.
        RegistryError: Unreachable; held; or the champion is not the expected one.
        IntegrityError: The version's files are not the recorded ones.
    """
    store, reference = Store(None, home), Reference.parse(action.reference)
    notices = notifications.of_action(reference.model, home)
    versions = store.versions(reference.model)
    champion_before = next((item.version for item in versions if "champion" in item.aliases), None)
    target = None if action.action == "rollback" and reference.bare else _target(action, reference, versions)
    ending = _losing(store, reference.model, target) if action.action == "retire" else ()
    event = _ACTIONS[action.action](store, action, reference.model, target, champion_before)
    versions = store.versions(reference.model)
    aliases = {alias: item.version for item in versions for alias in item.aliases}
    number = aliases.get("champion", 0) if target is None else target.version
    done = Done(
        action=action.action,
        model=reference.model,
        version=number,
        name=next((item.name for item in versions if item.version == number), ""),
        changed=event is not None,
        champion=aliases.get("champion"),
        previous=aliases.get("previous"),
        event="" if event is None else event.run_id,
        ended_pairs=ending if event is not None else (),
    )
    notifications.tell_action(notices, store, event, kind=_KINDS[action.action], version=number, champion=done.champion)
    return done


def _losing(store: Store, model: str, target: Listed | None) -> tuple[str, ...]:
    """Return the live pairs of query and gallery models that end with a version, in words."""
    if target is None or not target.model_id:
        return ()
    key = Key(model, target.version)
    families = dict.fromkeys([model, *(gallery.model for gallery in store.searched(key))])
    return tuple(pair for family in families for pair in store.fleet(family).losing(key))


def _target(action: Action, reference: Reference, versions: list[Listed]) -> Listed:
    if reference.bare and action.action != "promote":
        raise SpecError(f"{action.action} {reference}: name a version, e.g. {reference}:1")
    return find(reference, versions)


def _expected(action: Action, champion: int | None) -> int | None:
    return champion if action.expect is None else action.expect or None


def _promote(store: Store, action: Action, model: str, target: Listed | None, champion: int | None) -> Event | None:
    assert target is not None
    if champion == target.version == action.expect:
        return None
    return store.promote(
        model,
        target.version,
        expected=_expected(action, champion),
        reason=action.reason,
        actor=action.author,
        waive=action.waive,
    )


def _rollback(store: Store, action: Action, model: str, target: Listed | None, _: int | None) -> Event | None:
    number = None if target is None else target.version
    return store.rollback(model, number, expected=action.expect, reason=action.reason, actor=action.author)


def _hold(store: Store, action: Action, model: str, target: Listed | None, _: int | None) -> Event | None:
    assert target is not None
    release = action.action == "release"
    return store.hold(model, target.version, reason=action.reason, actor=action.author, release=release)


def _retire(store: Store, action: Action, model: str, target: Listed | None, _: int | None) -> Event | None:
    assert target is not None
    return store.retire(model, target.version, reason=action.reason, actor=action.author, force=action.force)


_ACTIONS: Mapping[str, Callable[[Store, Action, str, Listed | None, int | None], Event | None]] = {
    "promote": _promote,
    "rollback": _rollback,
    "hold": _hold,
    "release": _hold,
    "retire": _retire,
}


def history(action: Action, home: Path) -> list[Event]:
    """Return every event of a model, or of one of its versions, oldest first.

    Raises:
        SpecError: The registry has no such model or version.
    """
    store, reference = Store(None, home), Reference.parse(action.reference)
    versions = store.versions(reference.model)
    number = find(reference, versions).version if versions and not reference.bare else None
    if not versions:
        find(reference, versions)
    return [event for event in store.history(reference.model) if number in (None, event.version)]


def event_document(event: Event) -> dict[str, object]:
    """Return an event as JSON values."""
    return {**asdict(event), "time": time_of(event)}


def _number(version: int | None) -> str:
    return "unset" if version is None else f"version {version}"
