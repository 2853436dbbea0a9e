"""Pods, events and logs of a job besides its status, divided by attempt. Pure functions. Runs on the client.

A run has one id and one name, and several jobs, clusters and pods over its life. Pods and events of a job before this
one, of a cluster before this one, and about pods that start meanwhile, would give causes that are not true.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from graceful.launch.backend import Document
from graceful.launch.outcome import Outcome

CLUSTER_LABEL = "ray.io/cluster"
STARTED = ("Running", "Succeeded")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known about a job besides its own status.

    Attributes:
        pods: The pods of the run: those there are, and those a follower has seen and that are gone.
        events: About job, cluster and pods.
        workload: Kueue's object for the job; None: no queue.
        outcome: What the program said at its end; None: nothing found.
        waits: What the running program reports that it waits for; empty: nothing.
        namespace_ends: The namespace is being deleted: its pods go first, and the job knows nothing.
    """

    pods: Sequence[Document] = field(default_factory=tuple)
    events: Sequence[Document] = field(default_factory=tuple)
    workload: Document | None = None
    outcome: Outcome | None = None
    waits: str = ""
    namespace_ends: bool = False

    def of_job(self, job: Document) -> Evidence:
        """Return what belongs to this very job: its predecessors have its name and its run id, too."""
        meta = job["metadata"]
        made, uid = _moment(meta.get("creationTimestamp")), meta.get("uid", "")
        pods = [pod for pod in self.pods if not _before(_moment(pod["metadata"].get("creationTimestamp")), made)]
        events = [
            event
            for event in self.events
            if not _before(event_moment(event), made)
            and (event["involvedObject"].get("kind") != "RayJob" or event["involvedObject"].get("uid", uid) == uid)
        ]
        return replace(self, pods=tuple(pods), events=tuple(events))

    def until(self, end: str | None) -> Evidence:
        """Return what was there until a moment, as the status of a job writes it; None: everything."""
        moment = _moment(end)
        pods = [pod for pod in self.pods if not _before(moment, _moment(pod["metadata"].get("creationTimestamp")))]
        events = [event for event in self.events if not _before(moment, event_moment(event))]
        return self if moment is None else replace(self, pods=tuple(pods), events=tuple(events))

    def of_attempt(self, ray_cluster: str, started: str | None) -> Evidence:
        """Return what belongs to one cluster of the job, and to the job since the attempt started.

        Args:
            ray_cluster: The RayCluster of the attempt; empty: it has none yet.
            started: When the attempt started, as the status of a job writes it; None: not known.
        """
        start = _moment(started)
        return replace(
            self,
            pods=tuple(pod for pod in self.pods if _cluster(pod) in ("", ray_cluster)),
            events=tuple(event for event in self.events if _of_cluster(event, ray_cluster, start)),
        )

    def about_waiting_pods(self) -> tuple[Document, ...]:
        """Return the events that may tell why something waits: not those about pods that started or were replaced."""
        known = {pod["metadata"]["name"]: pod for pod in self.pods}
        made = [_moment(pod["metadata"].get("creationTimestamp")) for pod in self.pods]
        newest = max((moment for moment in made if moment is not None), default=None)
        return tuple(event for event in self.events if _may_wait(event, known, newest))


def _may_wait(event: Document, known: Mapping[str, Document], newest: datetime | None) -> bool:
    subject = event["involvedObject"]
    if subject.get("kind") != "Pod":
        return True
    pod = known.get(subject.get("name", ""))
    if pod is None:
        return not _before(event_moment(event), newest)
    scheduled = event.get("reason") == "FailedScheduling" and bool((pod.get("spec") or {}).get("nodeName"))
    return not scheduled and (pod.get("status") or {}).get("phase") not in STARTED


def newest_first(events: Iterable[Document]) -> list[Document]:
    """Return events, the latest first."""
    return sorted(events, key=lambda event: event_moment(event) or _LONG_AGO, reverse=True)


def event_moment(event: Document) -> datetime | None:
    """Return when something happened for the last time; None: the event does not say."""
    return _moment(event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp"))


def _of_cluster(event: Document, ray_cluster: str, start: datetime | None) -> bool:
    subject = event["involvedObject"]
    name, kind = subject.get("name", ""), subject.get("kind", "")
    if kind in ("RayCluster", "Pod") and ray_cluster and "-" in name:
        ours = name == ray_cluster or name.startswith(f"{ray_cluster}-")
        return ours or (kind == "Pod" and not _before(event_moment(event), start) and not _names_cluster(name))
    return not _before(event_moment(event), start)


def _names_cluster(pod: str) -> bool:
    """Return whether a pod's name is one that KubeRay gives to pods of clusters."""
    return "-head-" in pod or "-worker-" in pod


def _cluster(pod: Document) -> str:
    return str((pod["metadata"].get("labels") or {}).get(CLUSTER_LABEL, ""))


def _before(moment: datetime | None, other: datetime | None) -> bool:
    return moment is not None and other is not None and moment < other


def _moment(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return None


_LONG_AGO = datetime.min.replace(tzinfo=UTC)
