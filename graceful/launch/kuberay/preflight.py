"""Check with a cluster that a planned job's objects exist and its pods would be admitted. Changes nothing. Client.

What we may not ask is listed and is not a fault. Pods are tried by dry runs, which admission judges as it would the
real ones: PodSecurity, quotas, accounts, priority and runtime classes, policies of the cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from graceful.launch import names
from graceful.launch.backend import Document, Finding, Severity
from graceful.launch.kubernetes import nodes
from graceful.launch.refusals import ApiError, ForbiddenError, InvalidObjectError, NotFoundError

if TYPE_CHECKING:
    from graceful.launch.kuberay.profile import KubeRay
    from graceful.launch.kubernetes.kube import Kube

KUEUE = "kueue.x-k8s.io"
AT_ONCE = 4
CREATED_BY_ADMISSION = ("error looking up service account", "no PriorityClass")
"""Beginnings of refusals of a pod that name what `objects` finds missing as well."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a cluster said.

    Attributes:
        findings: What is wrong.
        unasked: What we may not ask, in the order of asking.
    """

    findings: tuple[Finding, ...] = ()
    unasked: tuple[str, ...] = field(default=())


Asked = Iterator[Finding | str]
"""Findings, and the names of what may not be asked."""


def ask(kube: Kube, profile: KubeRay, rayjob: Document) -> Answers:
    """Return a cluster's answers about a planned job.

    Args:
        kube: The API server.
        profile: Names objects.
        rayjob: Has the templates of the pods.
    """
    questions: list[Callable[[], Iterable[Finding | str]]] = [
        partial(_queue, kube, rayjob),
        *(partial(_named, kube, kind, name, key) for kind, name, key in objects(profile)),
        *(partial(try_pod, kube, role, template) for role, template in pods(rayjob)),
        partial(_nodes, kube, rayjob),
    ]
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        answers = [answer for answers in pool.map(lambda question: list(question()), questions) for answer in answers]
    unasked = dict.fromkeys(answer for answer in answers if isinstance(answer, str))
    return Answers(findings=tuple(item for item in answers if isinstance(item, Finding)), unasked=tuple(unasked))


def objects(profile: KubeRay) -> list[tuple[str, str, str]]:
    """Return (kind, name, key of the profile) of the objects that a profile names, each once."""
    token, bundle, storage = profile.mlflow.token_secret, profile.ca_bundle, profile.storage
    machines = {"head": profile.head, "worker": profile.worker}
    classes = {role: machine.priority_class for role, machine in machines.items()}
    classes["submitter"] = profile.submitter.priority_class
    disks = {role: machine.local_disk.storage_class for role, machine in machines.items() if machine.local_disk}
    named = [
        *(("Secret", secret, "pull_secrets") for secret in profile.pull_secrets),
        *(("Secret", secret, "env_from_secrets") for secret in profile.env_from_secrets),
        *([("Secret", token, "mlflow.token_secret")] if token else []),
        *([("ServiceAccount", profile.service_account, "service_account")] if profile.service_account else []),
        *([("PersistentVolumeClaim", storage.claim, "storage.claim")] if storage.claim else []),
        *([("ConfigMap", bundle.config_map, "ca_bundle.config_map")] if bundle else []),
        *([("WorkloadPriorityClass", profile.queue_priority, "queue_priority")] if profile.queue_priority else []),
        *(("PriorityClass", name, f"{role}.priority_class") for role, name in classes.items() if name),
        *(("StorageClass", name, f"{role}.local_disk.storage_class") for role, name in disks.items() if name),
    ]
    return list({(kind, name): (kind, name, key) for kind, name, key in reversed(named)}.values())[::-1]


def pods(rayjob: Document) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (role, template) of the pods of a job."""
    spec = rayjob["spec"]
    cluster = spec["rayClusterSpec"]
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield "worker", group["template"]
    yield "submitter", spec["submitterPodTemplate"]


def try_pod(kube: Kube, role: str, template: Document) -> Iterator[Finding | str]:
    """Yield why a cluster would refuse a pod of this template; asked by a dry run."""
    metadata = {**template["metadata"], "generateName": f"graceful-{role}-", "namespace": kube.namespace}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"restartPolicy": "Never", **template["spec"]},
    }
    try:
        kube.create(pod, dry_run=True)
    except ForbiddenError as e:
        if not _by_admission(e):
            yield "pods by a dry run"
        elif not any(text in e.message for text in CREATED_BY_ADMISSION):
            full = "exceeded quota" in e.message
            yield _finding(
                "over-quota" if full else "pod-refused",
                Severity.WARNING if full else Severity.ERROR,
                f"pod of the {role}",
                _reason(e),
                "the job waits until there is room" if full else "change the profile, or ask who set the policy",
            )
    except InvalidObjectError as e:
        yield _finding("pod-refused", Severity.ERROR, f"pod of the {role}", _reason(e), "correct the profile")
    except ApiError:
        yield "pods by a dry run"


def _by_admission(error: ForbiddenError) -> bool:
    """Return whether a policy refused the object, not the rules about who may create one."""
    return " cannot create resource " not in error.message and error.facts.get("code") == 403


def _reason(error: ApiError) -> str:
    """Return the server's own words, without the generated name and our advice on roles."""
    text = error.message.partition("; grant a Role")[0].partition("; correct the object")[0].rstrip(")")
    return text.partition(" is forbidden: ")[2] or text.partition(" is invalid: ")[2] or text


def _named(kube: Kube, kind: str, name: str, key: str) -> Asked:
    try:
        kube.get(kind, name)
    except NotFoundError:
        where = f"namespace {kube.namespace}" if not kind.endswith("Class") else "the cluster"
        message = f"{kind} {name} is not in {where}"
        yield _finding("absent", Severity.ERROR, f"profile.{key}", message, "create it: pods would wait for it")
    except ApiError:
        yield f"{kind} {name}"


def _queue(kube: Kube, rayjob: Document) -> Asked:
    """Yield why a queue does not take the job; without Kueue the job would run at once, past every quota."""
    queue = (rayjob["metadata"].get("labels") or {}).get(names.QUEUE)
    if not queue:
        return
    try:
        if not kube.serves(KUEUE):
            message = f"{queue}, but Kueue is not installed there: the job would run at once, past every quota"
            yield _finding("no-kueue", Severity.ERROR, "profile.queue", message, "leave `queue` out, or install Kueue")
            return
        kube.get("LocalQueue", queue)
    except NotFoundError:
        message = f"LocalQueue {queue} is not in namespace {kube.namespace}: the job would wait forever"
        yield _finding("absent", Severity.ERROR, "profile.queue", message, "create it, or name another")
    except ApiError:
        yield f"LocalQueue {queue}"


def _nodes(kube: Kube, rayjob: Document) -> Asked:
    """Yield a warning for each pod that none of today's nodes could hold, empty; a larger one may be added."""
    try:
        machines = kube.list("Node").items
    except ApiError:
        yield "nodes"
        return
    for role, template in pods(rayjob):
        reason = nodes.misfit(template["spec"], machines)
        if reason:
            remedy = "change selector, tolerations or size, unless an autoscaler adds such nodes"
            yield _finding("no-node", Severity.WARNING, f"pod of the {role}", reason, remedy)


def _finding(rule: str, severity: Severity, where: str, message: str, remedy: str) -> Finding:
    return Finding(rule=rule, severity=severity, where=where, message=message, remedy=remedy)
