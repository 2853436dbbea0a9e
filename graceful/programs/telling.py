"""What a webhook is told of verdicts, promotions and what people do; where it is kept until it was told. Driver."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from graceful.lineage import LineageRecord, Store
from graceful.lineage.events import DONE, Event
from graceful.programs.webhook import Webhook, webhook
from graceful.spec import RefreshSpec

OUTBOX = "outbox"
"""Folder beside the run, which a bucket keeps with it: a pod that dies takes no message with it."""


def say(line: str) -> None:
    """A warning: the result stands."""
    sys.stderr.write(f"graceful: {line}\n")


def tell(spec: RefreshSpec, run_dir: Path, store: Store, record: LineageRecord, *, champion: int | None) -> None:
    """Tell of a refresh's verdict and, if it was promoted, of that. Call it before the run counts as finished."""
    hook = _hook(spec, run_dir)
    if hook is None:
        return
    messages = [message(store, record, None, champion=champion)]
    moves = [event for event in store.history(spec.model) if event.node == record.model_id and event.status == DONE]
    messages += [message(store, record, event, champion=champion) for event in moves if event.kind == "promotion"]
    hook.post(*messages)


def again(spec: RefreshSpec, run_dir: Path) -> None:
    """Send what a finished run could not deliver."""
    hook = _hook(spec, run_dir)
    if hook is not None:
        hook.flush()


def _hook(spec: RefreshSpec, run_dir: Path) -> Webhook | None:
    return webhook(spec.registry.webhook, run_dir / OUTBOX, say)


def message(store: Store, record: LineageRecord, event: Event | None, *, champion: int | None) -> dict[str, Any]:
    """JSON values about an event, or about the verdict where there is none; rates are fractions."""
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
    """When it was, in UTC, ISO 8601."""
    return datetime.fromtimestamp(event.time / 1000, UTC).isoformat(timespec="milliseconds")
