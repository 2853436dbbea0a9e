"""The only module that moves `champion` and marks versions as held or retired. Driver and client.

mlflow's alias calls are last-writer-wins and keep no history. Here one writer at a time compares the champion with what
the caller saw, after evidence and bytes were verified; an event is opened before and closed after something moves. A
change that was interrupted is completed by repeating it, and repeating one that was carried out changes nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graceful.errors import RegistryError, SpecError
from graceful.lineage import events, schema, undoing
from graceful.lineage.events import Event, Kind
from graceful.lineage.registry import Registry, require_same_digest
from graceful.lineage.schema import LineageRecord

WAIVED = "waived"
RETIRED = "retired"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One wanted change; see `Store.promote`, `rollback`, `hold` and `retire`.

    Attributes:
        expected: Number of the champion that the caller saw; None: there was none.
        waive: Promote it although it is held.
        force: Retire it although it is the champion.
    """

    model: str
    version: int
    expected: int | None
    reason: str
    actor: str
    waive: bool = False
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class _Target:
    """The version of a change as the registry has it."""

    record: LineageRecord
    tag: str
    history: Sequence[Event]

    @property
    def label(self) -> str:
        return f"{self.record.model} {self.record.name} (version {self.record.version})"

    @property
    def standing(self) -> events.Standing:
        return events.standing(self.record.verdict, self.history)


# --- moving the champion ----------------------------------------------------------------------------------------------


def promote(registry: Registry, change: Change, *, kind: Kind = "promotion") -> Event | None:
    """Move the champion; None where it already was there."""
    champion, record = _champion(registry, change), None
    if champion != change.version:
        _require_expected(champion, change, kind)
        record = _verified_record(registry, change)  # takes a while with large models, so before others have to wait
    with undoing.turn(registry, change.model) as turn:
        champion = _settle_open_moves(registry, change)
        if champion == change.version:
            return None
        _require_expected(champion, change, kind)
        target = _target(registry, change, record or _verified_record(registry, change))
        waived = _require_allowed(target, change)
        turn.hold.extend()
        event = turn.event = events.begin(registry, _event(target, change, kind, waived=waived))
        if waived and target.tag != WAIVED:
            registry.client.set_model_version_tag(change.model, str(change.version), schema.TAG_GATE, WAIVED)
        turn.hold.extend()
        _set_previous(registry, change, event)
        turn.hold.extend()
        registry.client.set_registered_model_alias(change.model, schema.CHAMPION, str(change.version))
        turn.hold.confirm()
        _require_moved(registry, change, event)
        events.close(registry, event)
    return replace(event, status=events.DONE)


def rollback(
    registry: Registry, model: str, version: int | None, *, expected: int | None, reason: str, actor: str
) -> Event | None:
    """Move the champion back; None where that was done before."""
    _require_known(registry, model)
    champion, past = registry.aliases(model).get(schema.CHAMPION), events.read(registry, model)
    unfinished = next((item for item in reversed(past) if (item.kind, item.status) == ("rollback", events.OPEN)), None)
    if unfinished is not None and version in (None, unfinished.version):
        version, expected = unfinished.version, unfinished.before if expected is None else expected
    latest = next((item for item in reversed(past) if item.status == events.DONE and item.kind in events.MOVES), None)
    repeated = latest is not None and (latest.kind, latest.version, latest.before) == ("rollback", champion, expected)
    if repeated and expected is not None and version in (None, champion):
        return None
    number = _target_of_rollback(registry, model) if version is None else version
    before = champion if expected is None else expected
    change = Change(model=model, version=number, expected=before, reason=reason, actor=actor)
    return promote(registry, change, kind="rollback")


def _require_known(registry: Registry, model: str) -> None:
    if registry.point(registry.client.get_registered_model, model) is None:
        raise SpecError(f"model {model}: registry {registry.address.display} has no such model; check the name")


def _target_of_rollback(registry: Registry, model: str) -> int:
    previous = registry.aliases(model).get(schema.PREVIOUS)
    if previous is None:
        raise SpecError(
            f"{model}: no version was champion before this one; name one, e.g. `graceful rollback {model}:1`"
        )
    return previous


def _champion(registry: Registry, change: Change) -> int | None:
    return registry.aliases(change.model).get(schema.CHAMPION)


def _settle_open_moves(registry: Registry, change: Change) -> int | None:
    """Return the champion's number, after moves to the wanted version that were begun and never closed were settled.

    Such a move is closed as done where it was made in its turn. Where the champion moved on before it was made, its
    writer was stopped for longer than its lease: then the alias is put back.
    """
    champion = _champion(registry, change)
    if champion != change.version:
        return champion
    past = events.read(registry, change.model)
    for move in past:
        if move.status != events.OPEN or move.kind not in events.MOVES or move.version != change.version:
            continue
        if events.carried_out(move, past, champion):
            events.close(registry, move)
        else:
            champion = undoing.put_back(registry, move)
            events.close(registry, move, status=events.UNDONE)
    return champion


def _require_expected(champion: int | None, change: Change, kind: Kind) -> None:
    if champion != change.expected:
        remedy = (
            f"as when version {change.version} was judged; refresh it under another name, from the champion of now"
            if kind == "promotion"
            else f"as expected; read `graceful history {change.model}` and decide again"
        )
        raise RegistryError(
            f"{change.model}: champion is {_version_text(champion)}, not {_version_text(change.expected)} {remedy}",
            {"champion": champion, "expected": change.expected},
        )


def _set_previous(registry: Registry, change: Change, event: Event) -> None:
    """Set the alias `previous`: the champion that a promotion replaces, or the one before it after a rollback."""
    client, previous = registry.client, change.expected
    if event.kind != "promotion":
        past = events.read(registry, change.model)
        others = [item for item in past if item.run_id != event.run_id]
        _, previous = events.replay([*others, replace(event, status=events.DONE)])
    if previous is not None:
        client.set_registered_model_alias(change.model, schema.PREVIOUS, str(previous))
    elif schema.PREVIOUS in registry.aliases(change.model) and event.kind != "promotion":
        client.delete_registered_model_alias(change.model, schema.PREVIOUS)


def _require_moved(registry: Registry, change: Change, event: Event) -> None:
    champion = registry.aliases(change.model).get(schema.CHAMPION)
    if champion != change.version:
        events.close(registry, event, status=events.UNDONE)
        raise RegistryError(
            f"{change.model}: champion is {_version_text(champion)} after it was set to version {change.version};"
            f" it was moved without graceful; read `graceful history {change.model}` and promote again"
        )


def _version_text(version: int | None) -> str:
    return "unset" if version is None else f"version {version}"


# --- marking versions -------------------------------------------------------------------------------------------------


def hold(registry: Registry, change: Change) -> Event | None:
    """Keep a version from being promoted; None where it is held already."""
    return _mark(registry, change, "hold", tag="held")


def release(registry: Registry, change: Change) -> Event | None:
    """Take a hold by hand back; None where it is not held.

    Raises:
        SpecError: The gate holds it, and no person can release that.
    """
    return _mark(registry, change, "release", tag="passed")


def retire(registry: Registry, change: Change) -> Event | None:
    """Leave a version out of later refreshes; None where it is retired already."""
    return _mark(registry, change, "retirement", tag=RETIRED)


def _mark(registry: Registry, change: Change, kind: Kind, *, tag: str) -> Event | None:
    with undoing.turn(registry, change.model) as turn:
        target = _target(registry, change, _record(registry, change))
        serving = _champion(registry, change) == change.version
        _require_markable(target, change, kind, serving=serving)
        if target.standing == tag and target.tag == tag and (not serving or kind == "release"):
            return None
        event = turn.event = events.begin(registry, _event(target, change, kind, forced=serving))
        turn.hold.extend()
        registry.client.set_model_version_tag(change.model, str(change.version), schema.TAG_GATE, tag)
        if kind == "retirement":
            _leave_aliases(registry, change, event)
        turn.hold.confirm()
        events.close(registry, event)
    return replace(event, status=events.DONE)


def _require_markable(target: _Target, change: Change, kind: Kind, *, serving: bool) -> None:
    if kind == "release" and target.record.verdict != "passed":
        why = next(iter(target.record.reasons), "no reason recorded")
        raise SpecError(f"{target.label}: is held by the gate ({why}); promote it with --waive, or refresh again")
    if kind != "retirement" and target.standing == RETIRED:
        raise SpecError(f"{target.label}: is retired; refresh it under another name")
    if serving and kind == "hold":
        raise SpecError(f"{target.label}: is champion; promote another version or roll back first")
    if serving and kind == "retirement" and not change.force:
        raise SpecError(
            f"{target.label}: is champion; promote another version or roll back first, or retire it with --force, which"
            " leaves the model without a champion"
        )


def _leave_aliases(registry: Registry, change: Change, event: Event) -> None:
    """Move the aliases champion and previous away from a retired version."""
    client, aliases = registry.client, registry.aliases(change.model)
    if aliases.get(schema.CHAMPION) == change.version:
        client.delete_registered_model_alias(change.model, schema.CHAMPION)
    if aliases.get(schema.PREVIOUS) != change.version:
        return
    others = [item for item in events.read(registry, change.model) if item.run_id != event.run_id]
    _, previous = events.replay([*others, replace(event, status=events.DONE)])
    if previous is None:
        client.delete_registered_model_alias(change.model, schema.PREVIOUS)
    else:
        client.set_registered_model_alias(change.model, schema.PREVIOUS, str(previous))


# --- the version ------------------------------------------------------------------------------------------------------


def _record(registry: Registry, change: Change) -> LineageRecord:
    """Return the version's record, read from the registry itself because anyone may edit a tag."""
    node = registry.node(registry.node_id(_model_version(registry, change)))
    record = None if node is None else registry.recorded(node)
    if node is not None and record is None:
        raise registry.unrecorded(node)
    if record is None:
        raise RegistryError(
            f"{change.model} version {change.version}: not completely registered; run its refresh again"
        )
    return replace(record, version=change.version)


def _verified_record(registry: Registry, change: Change) -> LineageRecord:
    """Return the record after verifying the digest of each registered file."""
    record = _record(registry, change)
    with tempfile.TemporaryDirectory() as scratch:
        registry.download(record, Path(scratch))
    return record


def _target(registry: Registry, change: Change, record: LineageRecord) -> _Target:
    """Return the version as the registry lists it now, after verifying its digest tag."""
    listed = _model_version(registry, change)
    digest_tag = f"{record.label}: version tag {schema.TAG_DIGEST}"
    require_same_digest(digest_tag, actual=listed.tags.get(schema.TAG_DIGEST, "none"), expected=record.manifest)
    return _Target(
        record=record,
        tag=listed.tags.get(schema.TAG_GATE, "none"),
        history=events.read(registry, change.model, version=change.version),
    )


def _model_version(registry: Registry, change: Change) -> Any:
    listed = registry.point(registry.client.get_model_version, change.model, str(change.version))
    if listed is None:
        raise RegistryError(f"{change.model}: has no version {change.version}; take a number from the registry's list")
    return listed


def _require_allowed(target: _Target, change: Change) -> bool:
    """Return whether the promotion is a waiver.

    Raises:
        SpecError: Retired, or a waiver without a reason.
        RegistryError: Held.
    """
    standing, tag = target.standing, target.tag
    if RETIRED in (standing, tag):
        raise SpecError(f"{target.label}: is retired; refresh it under another name")
    if standing == tag == "passed" or (standing == WAIVED and tag == WAIVED and not change.waive):
        return False
    if change.waive:
        if not change.reason.strip():
            raise SpecError(f"{target.label}: --waive needs a reason; give --reason")
        return True
    raise RegistryError(
        f"{target.label}: is held {_hold_reason(target)}; only a version that passed can be promoted, or one that is"
        " waived (--waive) for a reason"
    )


def _hold_reason(target: _Target) -> str:
    if target.record.verdict != "passed":
        return f"by the gate ({next(iter(target.record.reasons), 'no reason recorded')})"
    by_hand = [event for event in target.history if event.kind == "hold" and event.status == events.DONE]
    if by_hand:
        return f"by {by_hand[-1].actor} ({by_hand[-1].reason})"
    return f"by the gate (its tag says {target.tag})"


def _event(target: _Target, change: Change, kind: Kind, *, waived: bool = False, forced: bool = False) -> Event:
    return Event(
        kind=kind,
        model=change.model,
        version=change.version,
        before=change.expected if kind in events.MOVES else None,
        node=target.record.model_id,
        name=target.record.name,
        reason=change.reason,
        actor=change.actor,
        waived=waived,
        forced=forced,
    )
