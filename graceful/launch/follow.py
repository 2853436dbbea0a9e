"""Every new status of a job until it is over, wherever it runs. Runs on the client."""

from __future__ import annotations

from collections.abc import Iterator

from graceful.errors import InfrastructureError
from graceful.launch.backend import Handle, Runs, Status, Trouble
from graceful.launch.kuberay import KubeRayRuns
from graceful.launch.patience import Patience
from graceful.launch.refusals import ApiError, UnreachableError

POLL = 1.0
"""Seconds between two looks, where there is nothing to watch."""
PASSING = (429, 500, 502, 503, 504)
LONGEST_ROW = 60
"""Failures in a row before giving up: with pauses of 10 s about ten minutes."""


def statuses(
    runs: Runs,
    handle: Handle,
    *,
    seconds: float | None = None,
    trouble: Trouble = lambda error: None,
    patience: Patience | None = None,
) -> Iterator[Status]:
    """Statuses as they change, the last of them terminal. Kubernetes is watched, other places are asked.

    Args:
        runs: Where.
        handle: Which.
        seconds: Overall deadline; None: none.
        trouble: Told of failures that pass.
        patience: Clock and pauses.

    Raises:
        SpecError: There is no such job.
        InfrastructureError: The deadline has passed, or the place does not answer for minutes.
    """
    if isinstance(runs, KubeRayRuns):
        from graceful.launch import observe

        observer = observe.Observer(kube=runs.kube(), name=runs.name(handle))
        yield from observe.follow(observer, seconds=seconds, trouble=trouble)
        return
    yield from _asked(runs, handle, seconds=seconds, trouble=trouble, patience=patience or Patience())


def _asked(
    runs: Runs, handle: Handle, *, seconds: float | None, trouble: Trouble, patience: Patience
) -> Iterator[Status]:
    end = None if seconds is None else patience.now() + seconds
    shown: Status | None = None
    failures = 0
    while shown is None or not shown.phase.terminal:
        if shown is not None:
            patience.sleep(POLL)
        try:
            now = runs.status(handle)
        except ApiError as e:
            failures += 1
            if not (isinstance(e, UnreachableError) or e.facts.get("code") in PASSING) or failures > LONGEST_ROW:
                raise
            trouble(e)
            patience.pause(failures, e)
        else:
            failures = 0
            if now != shown:
                shown = now
                yield now
        if end is not None and patience.now() >= end and not (shown and shown.phase.terminal):
            raise InfrastructureError(f"{handle}: not over after {seconds:g} s; it goes on without us")
