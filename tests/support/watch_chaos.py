"""Follow many recorded life-cycles at once through a proxy that injects faults, and count what goes wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graceful.launch.backend import Document, Status
from graceful.launch.kuberay import status
from graceful.launch.kuberay.observe import Observer, follow
from graceful.launch.kubernetes.kube import Kube
from graceful.patience import Patience
from tests.support.apiserver_proxy import Weather, proxied
from tests.support.kuberay_sequences import LifeCycle, life_cycles
from tests.support.replay import create, write_status

IMPATIENT = Patience(first=0.05, longest=0.5, tries=8)
PATIENCE_SECONDS = 120.0
"""After the last change was written: a follower that has not ended by then hangs."""


@dataclass(kw_only=True)
class Followed(Observer):
    """Notes which versions of the job it was shown, and how it ended."""

    versions: list[int] = field(default_factory=list)
    looking: bool = False
    last: Status | None = None
    error: Exception | None = None

    def current_status(self) -> Status:
        """Return the status; a look of its own accord is not a repetition."""
        self.looking = True
        try:
            return super().current_status()
        finally:
            self.looking = False

    def status_of(self, job: Document) -> Status:
        """Note the version."""
        if not self.looking:
            self.versions.append(int(job["metadata"]["resourceVersion"]))
        return super().status_of(job)

    def run(self) -> None:
        """Follow to the end."""
        try:
            for one in follow(self):
                self.last = one
        except Exception as e:  # noqa: BLE001  # whatever it is, the run must report it
            self.error = e

    def repeated(self) -> int:
        """Versions shown twice, or after a newer one."""
        return sum(later <= earlier for earlier, later in zip(self.versions, self.versions[1:], strict=False))


def run_life_cycles(kube: Kube, weather: Weather, *, count: int, prefix: str) -> Mapping[str, Any]:
    """Return one row: so many life-cycles in one weather.

    Args:
        kube: Straight to the server; writes what an operator would.
        weather: What the followers meet.
        count: Life-cycles, taken in turn from the recorded ones.
        prefix: Of the jobs' names.
    """
    cycles = [life_cycles()[number % len(life_cycles())] for number in range(count)]
    named = [(f"{prefix}-{number}", cycle) for number, cycle in enumerate(cycles)]
    for name, cycle in named:
        create(kube, name, case=cycle.case)
    with proxied(kube.access, weather) as access:
        client = Kube(access=access, namespace=kube.namespace, patience=IMPATIENT, late=1.0)
        followers = [Followed(kube=client, name=name, starting=1.0, running=2.0) for name, _ in named]
        threads = [threading.Thread(target=follower.run, daemon=True) for follower in followers]
        for thread in threads:
            thread.start()
        _until_watched(weather, count)
        _write(kube, named)
        end = time.monotonic() + PATIENCE_SECONDS
        for thread in threads:
            thread.join(timeout=max(0.0, end - time.monotonic()))
        hangs = sum(thread.is_alive() for thread in threads)
    wrong = sum(not _right(follower, cycle) for follower, (_, cycle) in zip(followers, named, strict=True))
    return {
        "life_cycles": count,
        "hangs": hangs,
        "duplicates": sum(follower.repeated() for follower in followers),
        "wrong_states": wrong,
        "faults_met": sum(weather.met.values()),
        "errors": sorted({repr(follower.error)[:200] for follower in followers if follower.error}),
    }


def _until_watched(weather: Weather, count: int) -> None:
    """A follower that comes after the last change has nothing to watch, and its run shows nothing."""
    end = time.monotonic() + PATIENCE_SECONDS
    while len(weather.watched) < count:
        if time.monotonic() > end:
            raise TimeoutError(f"{len(weather.watched)} of {count} followers watch after {PATIENCE_SECONDS:g} s")
        time.sleep(0.01)


def _write(kube: Kube, named: list[tuple[str, LifeCycle]]) -> None:
    """All life-cycles side by side, one change each in turn."""
    for step in range(max(len(cycle.statuses) for _, cycle in named)):
        for name, cycle in named:
            if step < len(cycle.statuses) and cycle.statuses[step]:
                write_status(kube, name, cycle.statuses[step])


def _right(follower: Followed, cycle: LifeCycle) -> bool:
    """Return whether it ended as the recorded status alone says; causes need pods, which nobody writes here."""
    job = cycle.moments[-1].job
    wanted = status.read({**job, "status": cycle.statuses[-1]})
    last = follower.last
    return last is not None and (last.phase, last.exit_code) == (wanted.phase, wanted.exit_code)
