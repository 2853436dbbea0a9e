"""An event of Kubernetes for how a refresh ended: passed and promoted, held, or failed. Client.

Pods of Ray may not write to the API server, so commands that follow a run to its end do: `graceful status --wait`,
and the pods of schedules. The name follows from the job, so that several followers write one event.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from graceful.errors import EXIT_HELD
from graceful.launch.backend import Document, Phase, Status
from graceful.launch.refusals import ApiError

if TYPE_CHECKING:
    from graceful.launch.kubernetes.kube import Kube

LONGEST = 1000
"""Characters of an event's message; Kubernetes allows 1024."""


def tell(kube: Kube, job: Document, status: Status) -> None:
    """Write the event of a refresh that is over; who may not, or comes second, writes none."""
    entrypoint = str((job.get("spec") or {}).get("entrypoint", ""))
    if not status.phase.terminal or not entrypoint.endswith(" refresh") or status.phase is Phase.STOPPED:
        return
    kind, reason, message = _verdict(status)
    meta, now = job["metadata"], datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    subject = {"apiVersion": job["apiVersion"], "kind": "RayJob", "name": meta["name"], "uid": meta["uid"]}
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta['name']}.{meta['uid'][:8]}.{reason.lower()}", "namespace": meta["namespace"]},
        "involvedObject": {**subject, "namespace": meta["namespace"]},
        "type": kind,
        "reason": reason,
        "message": message[:LONGEST],
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
        "source": {"component": "graceful"},
    }
    with contextlib.suppress(ApiError):
        kube.create(event)


def _verdict(status: Status) -> tuple[str, str, str]:
    if status.phase is not Phase.SUCCEEDED:
        return "Warning", "RefreshFailed", f"{status.run_id}: {status.cause or status.phase}"
    if status.exit_code == EXIT_HELD:
        return "Warning", "GateHeld", f"{status.run_id} is registered and not promoted: {status.cause}"
    if status.cause.startswith("skipped"):
        return "Normal", "RefreshSkipped", f"{status.run_id}: {status.cause}"
    return "Normal", "GatePassed", f"{status.run_id} passed the gate and is promoted"
