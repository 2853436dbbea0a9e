"""The log of a run as one stream: across cut connections, new submitter pods and deleted clusters. Client.

The submitter's pod repeats the driver's output and outlives the cluster, so its log is the run's. The server resumes a
log by whole seconds only; lines carry nanoseconds, so what was given already is recognised and dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime

from graceful.launch import names
from graceful.launch.backend import Document
from graceful.launch.causes import role
from graceful.launch.kuberay.pod_templates import SUBMITTER
from graceful.launch.kuberay.status import read, run_id
from graceful.launch.kubernetes.kube import Kube
from graceful.launch.refusals import ApiError, InvalidObjectError, NotFoundError, tolerate
from graceful.patience import Patience

POLL = 2.0
"""Seconds between looks for a pod that has not started or a job that has not ended."""
ENDED = ("Succeeded", "Failed")


@dataclass(kw_only=True)
class Cursor:
    """Position up to which one pod's log has been yielded.

    Attributes:
        stamp: Timestamp of the last line, as the server writes it; empty at the beginning.
        same: Lines given that bear this very timestamp, with how often.
    """

    stamp: str = ""
    same: Counter[str] = field(default_factory=Counter)
    again: Counter[str] = field(default_factory=Counter)

    def reopened(self) -> datetime | None:
        """Return the moment to read the log from; lines of that second will come again."""
        self.again = Counter(self.same)
        return _moment(self.stamp)

    def new(self, line: str) -> str | None:
        """Return the text of a line that has not been given, else None.

        Args:
            line: `2026-11-22T13:36:11.539000001Z text`.
        """
        stamp, _, text = line.partition(" ")
        if _order(stamp) < _order(self.stamp):
            return None
        if stamp == self.stamp and self.again[text] > 0:
            self.again[text] -= 1
            return None
        if stamp != self.stamp:
            self.stamp, self.same, self.again = stamp, Counter(), Counter()
        self.same[text] += 1
        return text


def lines(
    kube: Kube,
    name: str,
    *,
    follow: bool = False,
    since: datetime | None = None,
    patience: Patience | None = None,
    warn: Callable[[ApiError], None] = lambda error: None,
) -> Iterator[str]:
    """Yield the run's log, each line once, oldest pod first.

    Args:
        kube: The API server.
        name: The name of the RayJob.
        follow: Until the job is over.
        since: Only lines of this moment and later.
        patience: Pauses and clock.
        warn: Called with each failure that may pass.

    Raises:
        NotFoundError: There is no such job.
        ApiError: It does not pass, e.g. forbidden.
    """
    reader = _Reader(kube=kube, name=name, since=since, patience=patience or kube.patience, warn=warn)
    job: Document | None = kube.get("RayJob", name)
    ended = False
    while True:
        progress = yield from reader.read(job, follow=follow)
        if not reader.failures and not progress and (ended or not follow):  # the last lines come after the end
            return
        job, ended = reader.refresh_job(job)
        if follow and not progress and not ended:
            reader.patience.sleep(POLL)


@dataclass(kw_only=True)
class _Reader:
    kube: Kube
    name: str
    since: datetime | None
    patience: Patience
    warn: Callable[[ApiError], None]
    cursors: dict[str, Cursor] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    failures: int = 0
    healthy: bool = True

    def refresh_job(self, job: Document | None) -> tuple[Document | None, bool]:
        """Return the job as it is now, and whether it is over; a deleted job is over."""
        try:
            job = self.kube.get("RayJob", self.name)
        except NotFoundError:
            return job, True
        except ApiError as e:
            self.tolerate(e)
            return job, False
        return job, read(job).phase.terminal

    def read(self, job: Document | None, *, follow: bool) -> Generator[str, None, bool]:
        """Give what is new in every submitter's log; returns whether anything was."""
        progress, self.failures = False, 0 if self.healthy else self.failures
        self.healthy = True
        for pod in self.pods(job):
            for text in self.pod(pod, follow=follow):
                progress = True
                yield text
        return progress

    def pods(self, job: Document | None) -> list[Document]:
        """Return the submitters of the run whose logs have not ended, oldest first."""
        if job is None:
            return []
        label = names.label_value(run_id(job))
        try:
            pods = self.kube.list("Pod", selector=f"{names.RUN_ID}={label}").items
        except ApiError as e:
            self.tolerate(e)
            return []
        submitters = [pod for pod in pods if role(pod) == "submitter" and pod["metadata"]["uid"] not in self.finished]
        return sorted(submitters, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))

    def pod(self, pod: Document, *, follow: bool) -> Iterator[str]:
        """Yield the new lines of one pod, until its log ends or the connection does."""
        uid = pod["metadata"]["uid"]
        cursor = self.cursors.setdefault(uid, Cursor())
        ended = (pod.get("status") or {}).get("phase") in ENDED
        start, progressed, partial = cursor.reopened() or self.since, False, ""
        try:
            name, container = pod["metadata"]["name"], log_container(pod)
            log = self.kube.pod_logs(name, container=container, follow=follow and not ended, since=start)
            with closing(log):
                for line in log:
                    self.failures = 0
                    if not line.endswith("\n"):
                        partial = line
                        continue
                    text = cursor.new(line[:-1])
                    if text is not None:
                        progressed = True
                        yield text
            if ended and not progressed:  # a cut behind the server looks like an end, so read until nothing is new
                self.finished.add(uid)
                yield from filter(None, [cursor.new(partial)] if partial else [])
        except NotFoundError:  # the pod was deleted, so nothing more can be read
            self.finished.add(uid)
        except InvalidObjectError:  # the container has not started
            return
        except ApiError as e:
            if not e.facts.get("silent"):  # a program that writes nothing for a while is not a failure
                self.tolerate(e)

    def tolerate(self, error: ApiError) -> None:
        """Pause after what passes; raise what does not, or what has lasted too long."""
        self.failures = tolerate(error, self.failures, patience=self.patience, warn=self.warn)
        self.healthy = False


def log_container(pod: Document) -> str:
    """Return the container whose log is the run's: sidecars that a mesh injects stand beside it, or before it."""
    containers = (pod.get("spec") or {}).get("containers") or ()
    ours = [container["name"] for container in containers if container["name"] == SUBMITTER]
    return next(iter(ours), "")


def _moment(stamp: str) -> datetime | None:
    if not stamp:
        return None
    seconds, _, _ = stamp.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{seconds}+00:00")


def _order(stamp: str) -> str:
    """Return a timestamp padded with the zeros that servers drop, so that it sorts as text."""
    seconds, _, fraction = stamp.rstrip("Z").partition(".")
    return f"{seconds}.{fraction:0<9}"
