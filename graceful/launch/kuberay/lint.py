"""Rules against mistakes in RayJobs that Kubernetes accepts, each with a remedy. Pure functions. Client.

Every rule has a stable id and one function that yields what it found. `production` turns the warnings of STRICT rules
into errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graceful import redact
from graceful.environment import HOME_VARIABLE, STORAGE_VARIABLE
from graceful.launch import names
from graceful.launch.backend import Document, Finding, Severity
from graceful.launch.kuberay.manifests import DRAIN_VARIABLE
from graceful.launch.resources import GIB, is_accelerator, quantity

HEAD_MEMORY = 4 * GIB
"""The dashboard alone idles near 2 GiB."""
DEFAULT_GRACE = 30.0
DEFAULT_DRAIN = 30.0
_SPOT_LABELS = {
    "karpenter.sh/capacity-type": "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
    "cloud.google.com/gke-spot": "true",
    "cloud.google.com/gke-preemptible": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
    names.SPOT: "true",
}
_PERSISTENT = ("persistentVolumeClaim", "csi", "nfs", "ephemeral")
_PROBES_HANG = ((2, 11), (2, 37))
Violations = Iterator[tuple[str, str] | tuple[str, str, Severity]]
"""(field, what is wrong) and, where it is not the rule's own, the severity."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Input of a rule: a RayJob, and what is known besides it.

    Attributes:
        document: The RayJob.
        client_ray: Version of Ray beside this command; None: none installed.
        production: Whether only what may run in production passes.
    """

    document: Document
    client_ray: str | None = None
    production: bool = False

    @property
    def spec(self) -> Mapping[str, Any]:
        """Return the RayJob's specification."""
        return self.document.get("spec") or {}

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Return the RayJob's name, labels and annotations."""
        return self.document.get("metadata") or {}

    @property
    def cluster(self) -> Mapping[str, Any]:
        """Return the RayCluster that the RayJob makes."""
        return self.spec.get("rayClusterSpec") or {}

    @property
    def groups(self) -> list[Mapping[str, Any]]:
        """Return the worker groups of the RayCluster."""
        return list(self.cluster.get("workerGroupSpecs") or ())

    def pods(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield (field, template) of head and worker groups."""
        yield (
            "spec.rayClusterSpec.headGroupSpec.template",
            (self.cluster.get("headGroupSpec") or {}).get("template", {}),
        )
        for number, group in enumerate(self.groups):
            yield f"spec.rayClusterSpec.workerGroupSpecs.{number}.template", group.get("template", {})

    def containers(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield (field, container) that Ray runs in: the first of each pod."""
        for where, template in self.pods():
            containers = (template.get("spec") or {}).get("containers") or ()
            if containers:
                yield f"{where}.spec.containers.0", containers[0]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A check of one mistake.

    Attributes:
        id: Stable; people look it up.
        severity: Unless a finding says otherwise.
        remedy: What to write.
        check: Yields what it found.
    """

    id: str
    severity: Severity
    remedy: str
    check: Callable[[Subject], Violations]


def lint(document: Document, *, client_ray: str | None = None, production: bool = False) -> tuple[Finding, ...]:
    """Return the findings about one document, errors first; a kind without rules has none."""
    kind = document.get("kind")
    if kind == "RayCronJob":
        spec = (document.get("spec") or {}).get("jobTemplate") or {}
        template = {"kind": "RayJob", "metadata": document.get("metadata") or {}, "spec": spec}
        return (_cron(document), *lint(template, client_ray=client_ray, production=production))
    if kind != "RayJob":
        return ()
    subject = Subject(document=document, client_ray=client_ray, production=production)
    findings = [finding for rule in RULES for finding in _apply(rule, subject)]
    return tuple(sorted(findings, key=lambda finding: finding.severity is not Severity.ERROR))


def _apply(rule: Rule, subject: Subject) -> Iterator[Finding]:
    for where, message, *overrides in rule.check(subject):
        severity = overrides[0] if overrides else rule.severity
        if subject.production and rule.id in STRICT:
            severity = Severity.ERROR
        yield Finding(rule=rule.id, severity=severity, where=f"RayJob.{where}", message=message, remedy=rule.remedy)


def _cron(document: Document) -> Finding:
    return Finding(
        rule="ray-cron-job",
        severity=Severity.WARNING,
        where=f"RayCronJob.{(document.get('metadata') or {}).get('name', '')}",
        message="an alpha kind without concurrency policy or deadline: missed ticks start a job each",
        remedy="use a CronJob of batch/v1 that submits (`graceful schedule`)",
    )


def _no_shutdown(subject: Subject) -> Violations:
    if not subject.spec.get("shutdownAfterJobFinishes") and not subject.spec.get("deletionStrategy"):
        yield "spec.shutdownAfterJobFinishes", "not true: machines keep running and costing after the job"


def _ttl_without_shutdown(subject: Subject) -> Violations:
    ttl = subject.spec.get("ttlSecondsAfterFinished", 0)
    if ttl and not subject.spec.get("shutdownAfterJobFinishes"):
        yield "spec.ttlSecondsAfterFinished", f"{ttl} without shutdownAfterJobFinishes: the operator refuses the job"


def _ray_version(subject: Subject) -> Violations:
    version = str(subject.cluster.get("rayVersion") or "")
    if not version:
        yield "spec.rayClusterSpec.rayVersion", "not set: token authentication needs it"
        return
    if subject.client_ray and subject.client_ray != version:
        yield "spec.rayClusterSpec.rayVersion", f"{version}, but Ray here is {subject.client_ray}"
    for where, container in subject.containers():
        tag = re.search(r"ray[^:@]*:(\d+\.\d+\.\d+)", str(container.get("image", "")))
        if tag and tag[1] != version:
            yield f"{where}.image", f"Ray {tag[1]} by its tag, but rayVersion is {version}", Severity.ERROR


def _memory(subject: Subject) -> Violations:
    for number, (where, container) in enumerate(subject.containers()):
        limit = ((container.get("resources") or {}).get("limits") or {}).get("memory")
        if limit is None:
            yield f"{where}.resources.limits.memory", "not set: Ray takes the node's memory for its own"
        elif number == 0 and quantity(limit) < HEAD_MEMORY:
            yield f"{where}.resources.limits.memory", f"{limit} for the head, below 4Gi: it runs out of memory"


def _retry_without_checkpoints(subject: Subject) -> Violations:
    limit = subject.spec.get("backoffLimit") or 0
    if limit and not _durable(subject):
        yield "spec.backoffLimit", f"{limit} retries, but runs lie in the pods: each retry starts from nothing"


def _runs_not_shared(subject: Subject) -> Violations:
    replicas = sum(int(group.get("replicas") or 0) for group in subject.groups)
    if replicas and not _durable(subject):
        yield "spec.rayClusterSpec", f"{replicas} workers, but no volume that they and the head share for checkpoints"


def _durable(subject: Subject) -> bool:
    """Return whether runs have copies in a bucket, or the head's GRACEFUL_HOME is on a volume that outlives the pod."""
    template = next((template for _, template in subject.pods()), {})
    spec = template.get("spec") or {}
    container = _ray_container(spec)
    home, bucket = _variable(container, HOME_VARIABLE) or "", _variable(container, STORAGE_VARIABLE)
    persistent = {volume["name"] for volume in spec.get("volumes") or () if any(kind in volume for kind in _PERSISTENT)}
    mounts = [mount["mountPath"] for mount in container.get("volumeMounts") or () if mount["name"] in persistent]
    return bool(bucket) or any(f"{home}/".startswith(f"{path.rstrip('/')}/") for path in mounts if home)


def _submitter(subject: Subject) -> Violations:
    if subject.spec.get("submissionMode", "K8sJobMode") != "K8sJobMode":
        return
    where = "spec.submitterPodTemplate"
    pod = (subject.spec.get("submitterPodTemplate") or {}).get("spec") or {}
    container = _ray_container(pod)
    missing = [key for key in ("image", "resources", "securityContext") if not container.get(key)]
    if missing:
        yield f"{where}.spec.containers.0", f"no {', '.join(missing)}: refused by PodSecurity restricted, 200 MiB"


def _working_dir(subject: Subject) -> Violations:
    match = re.search(r"working_dir[\"']?\s*:\s*[\"']?([^\s\"',}]+)", str(subject.spec.get("runtimeEnvYAML") or ""))
    if match and "://" not in match[1]:
        yield "spec.runtimeEnvYAML", f"working_dir {match[1]} is a path of this machine; the cluster does not have it"


def _deletion_rules(subject: Subject) -> Violations:
    if not (subject.spec.get("deletionStrategy") or {}).get("deletionRules"):
        return
    if subject.spec.get("ttlSecondsAfterFinished"):
        yield "spec.deletionStrategy.deletionRules", "together with ttlSecondsAfterFinished: the operator refuses it"
    if names.QUEUE in (subject.metadata.get("labels") or {}):
        yield "spec.deletionStrategy.deletionRules", "in a Kueue queue: it demands shutdownAfterJobFinishes instead"


def _head_on_spot(subject: Subject) -> Violations:
    where, template = next(subject.pods())
    spec = template.get("spec") or {}
    labels = {**(spec.get("nodeSelector") or {}), **((template.get("metadata") or {}).get("labels") or {})}
    labels |= {item["key"]: item.get("value", "true") for item in spec.get("tolerations") or () if "key" in item}
    spot = next((key for key, value in _SPOT_LABELS.items() if str(labels.get(key, "")).lower() == value.lower()), None)
    if spot:
        yield f"{where}.spec", f"the head may run on spot machines ({spot}); losing it restarts the driver"


def _without_limits(subject: Subject) -> Violations:
    for where, container in subject.containers():
        resources = container.get("resources") or {}
        limits = resources.get("limits") or {}
        for key, value in (resources.get("requests") or {}).items():
            if key not in limits and (key == "cpu" or is_accelerator(key)):
                severity = Severity.WARNING if key == "cpu" else Severity.ERROR
                yield f"{where}.resources.requests.{key}", f"{value} without a limit: Ray counts limits", severity


def _autoscaler(subject: Subject) -> Violations:
    if subject.cluster.get("enableInTreeAutoscaling") and not (subject.cluster.get("autoscalerOptions") or {}).get(
        "securityContext"
    ):
        yield "spec.rayClusterSpec.autoscalerOptions", "its sidecar has no securityContext: refused by PodSecurity"


def _name(subject: Subject) -> Violations:
    name = str(subject.metadata.get("name") or "")
    if not names.is_job_name(name):
        yield "metadata.name", f"{name!r} ({len(name)} characters) is not DNS-1035 of at most {names.LONGEST}"


def _pod_labels(subject: Subject) -> Violations:
    run_labels = {key for key in subject.metadata.get("labels") or {} if key == names.RUN_ID}
    for where, template in subject.pods():
        missing = run_labels - set((template.get("metadata") or {}).get("labels") or {})
        if missing:
            yield (
                f"{where}.metadata.labels",
                f"no {', '.join(sorted(missing))}: labels of a RayJob do not reach its pods",
            )


def _secrets(subject: Subject) -> Violations:
    fields = ("entrypoint", "runtimeEnvYAML", "metadata", "rayClusterSpec", "submitterPodTemplate")
    for where in redact.secrets({key: subject.spec[key] for key in fields if key in subject.spec}, "spec"):
        yield where, "looks like a secret, and everybody who may read RayJobs or the dashboard would see it"
    yield from (
        (where, "looks like a secret in an annotation or label")
        for where in redact.secrets(
            {key: subject.metadata.get(key) or {} for key in ("labels", "annotations")}, "metadata"
        )
    )


def _mutable_image(subject: Subject) -> Violations:
    if subject.production:
        for where, container in subject.containers():
            if "@sha256:" not in str(container.get("image", "")):
                yield f"{where}.image", f"{container.get('image')} is a tag, whose content may change between retries"


def _elastic(subject: Subject) -> Violations:
    if (subject.metadata.get("annotations") or {}).get(names.ENGINE) != "deepspeed":
        return
    for number, group in enumerate(subject.groups):
        smallest, largest = group.get("minReplicas"), group.get("maxReplicas")
        if smallest != largest:
            where = f"spec.rayClusterSpec.workerGroupSpecs.{number}"
            yield where, f"{smallest} to {largest} workers: DeepSpeed's optimiser state fits one number of workers only"


def _probes_hang(subject: Subject) -> Violations:
    version = re.match(r"(\d+)\.(\d+)", str(subject.cluster.get("rayVersion") or ""))
    if version and _PROBES_HANG[0] <= (int(version[1]), int(version[2])) <= _PROBES_HANG[1]:
        yield "spec.rayClusterSpec.rayVersion", f"{version[0]}: its health probes hang and pods are restarted"


def _grace(subject: Subject) -> Violations:
    for where, template in subject.pods():
        spec = template.get("spec") or {}
        container = _ray_container(spec)
        grace = float(spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE))
        drain = float(_variable(container, DRAIN_VARIABLE) or DEFAULT_DRAIN)
        if grace <= drain:
            yield (
                f"{where}.spec.terminationGracePeriodSeconds",
                f"{grace:g} s, but Ray drains for up to {drain:g} s and is killed in the middle",
            )


def _ray_container(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the container that Ray runs in."""
    containers = pod.get("containers") or [{}]
    container: Mapping[str, Any] = containers[0]
    return container


def _variable(container: Mapping[str, Any], name: str) -> str | None:
    """Return the value of an environment variable; the last one wins, as in a pod."""
    return next((item.get("value") for item in reversed(container.get("env") or ()) if item["name"] == name), None)


ERROR, WARNING = Severity.ERROR, Severity.WARNING
RULES = tuple(
    Rule(id=name, severity=severity, remedy=remedy, check=check)
    for name, severity, check, remedy in (
        ("no-shutdown", ERROR, _no_shutdown, "set shutdownAfterJobFinishes: true"),
        ("ttl-without-shutdown", ERROR, _ttl_without_shutdown, "set shutdownAfterJobFinishes: true, or drop the ttl"),
        ("ray-version", WARNING, _ray_version, "use one version of Ray in image, ray_version and here"),
        ("memory", ERROR, _memory, "set a memory limit; at least 4Gi for the head"),
        ("retry-without-checkpoints", WARNING, _retry_without_checkpoints, "name storage.claim, or set retries.job: 0"),
        ("runs-not-shared", ERROR, _runs_not_shared, "name storage.claim: a ReadWriteMany volume for all pods"),
        ("submitter-template", ERROR, _submitter, "give submitterPodTemplate image, resources and securityContext"),
        ("local-working-dir", ERROR, _working_dir, "put the code into the image, or a zip into a bucket"),
        ("deletion-rules", ERROR, _deletion_rules, "use shutdownAfterJobFinishes and ttlSecondsAfterFinished"),
        ("head-on-spot", WARNING, _head_on_spot, "give the head an on-demand node_selector"),
        ("requests-without-limits", ERROR, _without_limits, "set limits equal to requests"),
        ("autoscaler-context", ERROR, _autoscaler, "set autoscalerOptions.securityContext, or switch autoscaling off"),
        ("name", ERROR, _name, "lower case letters, digits and hyphens, starting with a letter"),
        ("pod-labels", WARNING, _pod_labels, "repeat the labels in every pod template"),
        ("secret-in-sight", ERROR, _secrets, "put it into a Secret and name that in env_from_secrets"),
        ("mutable-image", WARNING, _mutable_image, "pin the image by digest: name@sha256:..."),
        ("elastic-deepspeed", ERROR, _elastic, "set minReplicas = replicas = maxReplicas"),
        ("ray-probes-hang", ERROR, _probes_hang, "use Ray 2.52 or later"),
        ("grace-period", WARNING, _grace, f"set terminationGracePeriodSeconds above {DRAIN_VARIABLE}"),
    )
)
STRICT = {"mutable-image", "head-on-spot", "retry-without-checkpoints", "grace-period"}
