"""Rules against mistakes in the pods of a RayJob. Pure functions. Client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graceful.environment import HOME_VARIABLE, STORAGE_VARIABLE
from graceful.launch import names
from graceful.launch.backend import Severity
from graceful.launch.kuberay.pod_templates import DRAIN_VARIABLE
from graceful.launch.kuberay.rules import Subject, Violations, ray_container, rules_of, variable
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
_PERSISTENT = ("persistentVolumeClaim", "csi", "nfs")


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
    container = ray_container(spec)
    home, bucket = variable(container, HOME_VARIABLE) or "", variable(container, STORAGE_VARIABLE)
    persistent = {volume["name"] for volume in spec.get("volumes") or () if any(kind in volume for kind in _PERSISTENT)}
    mounts = [mount["mountPath"] for mount in container.get("volumeMounts") or () if mount["name"] in persistent]
    return bool(bucket) or any(f"{home}/".startswith(f"{path.rstrip('/')}/") for path in mounts if home)


def _submitter(subject: Subject) -> Violations:
    if subject.spec.get("submissionMode", "K8sJobMode") != "K8sJobMode":
        return
    where = "spec.submitterPodTemplate"
    pod = (subject.spec.get("submitterPodTemplate") or {}).get("spec") or {}
    container = ray_container(pod)
    missing = [key for key in ("image", "resources", "securityContext") if not container.get(key)]
    if missing:
        yield f"{where}.spec.containers.0", f"no {', '.join(missing)}: refused by PodSecurity restricted, 200 MiB"


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


def _pod_labels(subject: Subject) -> Violations:
    run_labels = {key for key in subject.metadata.get("labels") or {} if key == names.RUN_ID}
    for where, template in subject.pods():
        missing = run_labels - set((template.get("metadata") or {}).get("labels") or {})
        if missing:
            yield (
                f"{where}.metadata.labels",
                f"no {', '.join(sorted(missing))}: labels of a RayJob do not reach its pods",
            )


def _mutable_image(subject: Subject) -> Violations:
    if subject.production:
        for where, container in subject.containers():
            if "@sha256:" not in str(container.get("image", "")):
                yield f"{where}.image", f"{container.get('image')} is a tag, whose content may change between retries"


def _grace(subject: Subject) -> Violations:
    for where, template in subject.pods():
        spec = template.get("spec") or {}
        container = ray_container(spec)
        grace = float(spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE))
        drain = float(variable(container, DRAIN_VARIABLE) or DEFAULT_DRAIN)
        if grace <= drain:
            yield (
                f"{where}.spec.terminationGracePeriodSeconds",
                f"{grace:g} s, but Ray drains for up to {drain:g} s and is killed in the middle",
            )


def _weak_security(subject: Subject) -> Violations:
    """Yield what PodSecurity `restricted` refuses; our own templates have none of it, overrides may."""
    for where, template in subject.all_pods():
        spec = template.get("spec") or {}
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(key):
                yield f"{where}.spec.{key}", "true: the pod shares it with the node"
        for volume in spec.get("volumes") or ():
            if "hostPath" in volume:
                yield f"{where}.spec.volumes", f"{volume.get('name')} is a folder of the node (hostPath)"
        for kind in ("initContainers", "containers"):
            for number, container in enumerate(spec.get(kind) or ()):
                yield from _weak_container(spec, container, f"{where}.spec.{kind}.{number}.securityContext")


def _weak_container(pod: Mapping[str, Any], container: Mapping[str, Any], where: str) -> Violations:
    own = container.get("securityContext") or {}
    context = {**(pod.get("securityContext") or {}), **own}
    name, capabilities = container.get("name"), own.get("capabilities") or {}
    added = set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}
    if added:
        yield f"{where}.capabilities.add", f"{name} gets {', '.join(sorted(added))}"
    if own.get("privileged"):
        yield f"{where}.privileged", f"{name} may do on the node what root may"
    if context.get("runAsUser") == 0 or context.get("runAsNonRoot") is False:
        yield f"{where}.runAsUser", f"{name} may run as root"
    if own.get("allowPrivilegeEscalation"):
        yield f"{where}.allowPrivilegeEscalation", f"{name} may become another user"
    if (context.get("seccompProfile") or {}).get("type") == "Unconfined":
        yield f"{where}.seccompProfile", f"{name} may use every system call"


def _mesh(subject: Subject) -> Violations:
    """Yield where a mesh is asked to put a proxy beside the submitter that runs on after it."""
    metadata = (subject.spec.get("submitterPodTemplate") or {}).get("metadata") or {}
    said = {**(metadata.get("labels") or {}), **(metadata.get("annotations") or {})}
    for key, on, native in _MESHES:
        if said.get(key) == on and said.get(native) != "true":
            yield f"spec.submitterPodTemplate.metadata.{key}", f"{on}: its proxy may keep the job from ending"


_MESHES = (
    ("sidecar.istio.io/inject", "true", "sidecar.istio.io/nativeSidecar"),
    ("linkerd.io/inject", "enabled", "config.beta.linkerd.io/proxy-enable-native-sidecar"),
)
"""(what asks for a proxy, the value that does, what makes it end with the pod)."""


def _topology(subject: Subject) -> Violations:
    """Yield where a topology is asked for that has no effect, because the job is in no queue."""
    if names.QUEUE in (subject.metadata.get("labels") or {}):
        return
    for where, template in subject.pods():
        for key, level in ((template.get("metadata") or {}).get("annotations") or {}).items():
            if key.startswith(names.TOPOLOGY) and key.endswith("-topology"):
                yield (
                    f"{where}.metadata.annotations.{key}",
                    f"{level}, but the job is in no queue, so that its pods are placed anywhere",
                )


ERROR, WARNING = Severity.ERROR, Severity.WARNING
RULES = rules_of(
    ("memory", ERROR, _memory, "set a memory limit; at least 4Gi for the head"),
    ("retry-without-checkpoints", WARNING, _retry_without_checkpoints, "name storage.claim, or set retries.job: 0"),
    ("runs-not-shared", ERROR, _runs_not_shared, "name storage.claim: a ReadWriteMany volume for all pods"),
    ("submitter-template", ERROR, _submitter, "give submitterPodTemplate image, resources and securityContext"),
    ("head-on-spot", WARNING, _head_on_spot, "give the head an on-demand node_selector"),
    ("requests-without-limits", ERROR, _without_limits, "set limits equal to requests"),
    ("pod-labels", WARNING, _pod_labels, "repeat the labels in every pod template"),
    ("mutable-image", WARNING, _mutable_image, "pin the image by digest: name@sha256:..."),
    ("grace-period", WARNING, _grace, f"set terminationGracePeriodSeconds above {DRAIN_VARIABLE}"),
    ("weak-security", WARNING, _weak_security, "PodSecurity `restricted` refuses it; leave it out of overrides"),
    ("topology-without-queue", WARNING, _topology, "name `queue`, or leave `worker.topology` out"),
    ("mesh-sidecar", WARNING, _mesh, "annotate it with nativeSidecar, or switch the injection off for submitters"),
)
