"""Messages to webhooks about verdicts, promotions and actions of people, and the address of each model. Driver.

The address of a model is `registry.webhook` of its newest refresh in this home, else $GRACEFUL_WEBHOOK. The former is
kept in HOME/webhooks/MODEL, which only its owner may read, for the commands that have no spec: promote, rollback, hold,
release, retire.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from graceful import redact
from graceful.lineage import LineageRecord, Store
from graceful.lineage.events import DONE, Event
from graceful.patience import ONE_TRY, Patience
from graceful.programs.messages import webhook
from graceful.programs.messages.outbox import FOLDER, Outbox
from graceful.programs.messages.webhook import Webhook
from graceful.programs.runs.run import Run
from graceful.spec import NAME
from graceful.spec.addresses import webhook_of, webhook_problem
from graceful.storage import Mirror, guarded, read_bytes, write_bytes

ADDRESSES = "webhooks"
"""Folder of one address for each model whose spec names one; never copied to a bucket."""
DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True, kw_only=True)
class Notices:
    """Tells the receivers of a home's models.

    Attributes:
        model: Whose messages this command sends.
        home: Folder of outbox and addresses.
        other: Address of models whose spec names none; None: no messages are sent of them.
        mirror: Copy of the home folder.
    """

    model: str
    home: Path
    other: str | None = field(repr=False)
    mirror: Mirror

    def tell(self, *documents: Mapping[str, Any]) -> None:
        """Send messages about the model, if there is an address, after those that wait."""
        has_receiver = self._receiver(self.model, webhook.PATIENCE) is not None
        self._outbox(webhook.PATIENCE).post(*(documents if has_receiver else ()))

    def again(self) -> None:
        """Send what earlier commands could not, with one try each."""
        outbox = self._outbox(ONE_TRY)
        outbox.restore()
        outbox.flush()

    def adopt(self, run_dir: Path) -> None:
        """Take over messages that a run of an earlier release kept in its own folder."""
        self._outbox(ONE_TRY).adopt(run_dir / FOLDER)

    def _outbox(self, patience: Patience) -> Outbox:
        def receiver(model: str) -> Webhook | None:
            return self._receiver(model, patience if model == self.model else ONE_TRY)

        folder, key = self.home / FOLDER, webhook.secret()
        return Outbox(folder=folder, receiver=receiver, say=say, mirror=self.mirror, secret=key)

    def _receiver(self, model: str, patience: Patience) -> Webhook | None:
        url = _address(self.home, model) or self.other
        return None if url is None else Webhook(url=url, say=say, secret=webhook.secret(), patience=patience)


def of_refresh(run: Run) -> Notices:
    """Return the receivers of a refresh's messages; call it before training, because a wrong address is refused.

    Raises:
        SpecError: The environment names an address that cannot be posted to.
        StorageError: The address of the spec cannot be kept or read.
    """
    model, url = run.spec.model, run.spec.registry.webhook
    known_url, path = _address(run.home, model), run.home / ADDRESSES / model
    notices = Notices(model=model, home=run.home, other=webhook_of(os.environ), mirror=run.mirror)
    if url is not None and url != known_url:
        write_bytes(path, url.encode(), private=True)
    elif url is None:
        with guarded(path, "remove"):
            path.unlink(missing_ok=True)
    notices.adopt(run.folder)
    return notices


def of_action(model: str, home: Path) -> Notices:
    """Return the receivers of messages about what people do to a version.

    Raises:
        SpecError: The environment names an address that cannot be posted to.
        StorageError: The address of the model cannot be read.
    """
    _address(home, model)
    return Notices(model=model, home=home, other=webhook_of(os.environ), mirror=Mirror.of(home))


def tell(notices: Notices, store: Store, record: LineageRecord, *, champion: int | None) -> None:
    """Tell of a refresh's verdict and, if it was promoted, of that. Call it before the run counts as finished."""
    messages = [message(store, record, None, champion=champion)]
    moves = [event for event in store.history(record.model) if event.node == record.model_id and event.status == DONE]
    messages += [message(store, record, event, champion=champion) for event in moves if event.kind == "promotion"]
    notices.tell(*messages)


def tell_action(
    notices: Notices, store: Store, event: Event | None, *, kind: str, version: int, champion: int | None
) -> None:
    """Send a message about an event; where nothing had to change, about the event of an interrupted command.

    Args:
        notices: The receivers.
        store: Has the history.
        event: What was recorded now; None: nothing had to be done.
        kind: The kind of the event.
        version: To which it was done.
        champion: Number of the champion now.
    """
    if event is None:
        since = datetime.now(UTC).timestamp() * 1000 - DAY_MS
        past = [recent for recent in store.history(notices.model) if recent.status == DONE and recent.time > since]
        event = next((recent for recent in reversed(past) if (recent.kind, recent.version) == (kind, version)), None)
    if event is None or not event.node:
        notices.tell()
    else:
        notices.tell(message(store, store.record(event.node), event, champion=champion))


def _address(home: Path, model: str) -> str | None:
    """Return what the newest refresh of a model left; a name that is not a name of a model has none."""
    path = home / ADDRESSES / model
    if re.fullmatch(NAME, model) is None or not path.exists():
        return None
    url = read_bytes(path).decode("utf-8", errors="replace")
    return url if webhook_problem(url) is None else None


def say(line: str) -> None:
    """Log a warning; the result stands."""
    sys.stderr.write(f"graceful: {redact.message(line)}\n")


def message(store: Store, record: LineageRecord, event: Event | None, *, champion: int | None) -> dict[str, Any]:
    """Return JSON values about an event, or about the verdict where there is none; rates are fractions."""
    page = store.address(f"#/models/{record.model}/versions/{record.version}?workflowType=machine_learning")
    report = store.address(f"get-artifact?run_uuid={record.run_id}&path=lineage/report.html")
    return {
        "kind": "verdict" if event is None else event.kind,
        "event": None if event is None else event.run_id,
        "time": record.created if event is None else time_of(event),
        "model": record.model,
        "version": record.version,
        "name": record.name,
        "model_id": record.model_id,
        "verdict": record.verdict,
        "reasons": list(record.reasons),
        "actor": "" if event is None else event.actor,
        "reason": "" if event is None else event.reason,
        "waived": event is not None and event.waived,
        "champion": champion,
        "nfr": {
            "worst": record.worst,
            "by_predecessor": [
                {
                    "name": edge.name,
                    "value": edge.value,
                    "lower": edge.lower,
                    "upper": edge.upper,
                    "bound": edge.bound,
                    "verdict": edge.verdict,
                }
                for edge in record.edges
            ],
        },
        "urls": {} if page is None else {"version": page, "report": report},
    }


def time_of(event: Event) -> str:
    """Return when it was, in UTC, as ISO 8601."""
    return datetime.fromtimestamp(event.time / 1000, UTC).isoformat(timespec="milliseconds")
