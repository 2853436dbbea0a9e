"""Follow the status of a job until it is over, on any backend. Runs on the client."""

from __future__ import annotations

from collections.abc import Iterator

from graceful.errors import InfrastructureError
from graceful.launch.backend import Handle, Runs, Status, Warn, Watched
from graceful.launch.refusals import ApiError, tolerate
from graceful.patience import Patience

POLL = 1.0
"""Seconds between two looks, where there is nothing to watch."""


def statuses(
    runs: Runs,
    handle: Handle,
    *,
    seconds: float | None = None,
    warn: Warn = lambda error: None,
    patience: Patience | None = None,
) -> Iterator[Status]:
    """Yield statuses as they change, the last of them terminal. Backends that can be watched are, others are polled.

    Args:
        runs: Where.
        handle: Which.
        seconds: Overall deadline; None: none.
        warn: Called with each failure that may pass.
        patience: Clock and pauses.

    Raises:
        SpecError: There is no such job.
        InfrastructureError: The deadline has passed, or the backend does not answer for minutes.
    """
    if isinstance(runs, Watched):
        yield from runs.watch(handle, seconds=seconds, warn=warn)
        return
    yield from _polled(runs, handle, seconds=seconds, warn=warn, patience=patience or Patience())


def _polled(runs: Runs, handle: Handle, *, seconds: float | None, warn: Warn, patience: Patience) -> Iterator[Status]:
    end = None if seconds is None else patience.now() + seconds
    latest: Status | None = None
    failures = 0
    while latest is None or not latest.phase.terminal:
        if latest is not None:
            patience.sleep(POLL)
        try:
            status = runs.status(handle)
        except ApiError as e:
            failures = tolerate(e, failures, patience=patience, warn=warn)
        else:
            failures = 0
            if status != latest:
                latest = status
                yield status
        if end is not None and patience.now() >= end and not (latest and latest.phase.terminal):
            raise InfrastructureError(f"{handle}: not over after {seconds:g} s; the run continues")
