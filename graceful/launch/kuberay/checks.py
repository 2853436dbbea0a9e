"""`graceful doctor --on NAME` for Kubernetes: read-only checks of what a submitted run needs. Client.

What we may not read is a warning, not a failure: the rights that a run needs are checked one by one, reading secrets
and other namespaces are not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from graceful.errors import GracefulError
from graceful.launch.backend import Document
from graceful.launch.checks import Check, Services, fail, ok, warn
from graceful.launch.job import JobSpec
from graceful.launch.kuberay import manifests, validate
from graceful.launch.kubernetes.kube import Kube
from graceful.launch.refusals import ApiError, ForbiddenError, NotFoundError
from graceful.patience import Patience

if TYPE_CHECKING:
    from graceful.launch.kuberay.profile import KubeRay, Storage

CRD = "rayjobs.ray.io"
ENFORCE = "pod-security.kubernetes.io/enforce"
OLDEST_OPERATOR = (1, 4)
"""KubeRay before it has neither deletion nor retries as our jobs use them."""
RIGHTS: dict[str, tuple[str, ...]] = {
    "rayjobs.ray.io": ("create", "get", "list", "watch", "patch", "delete"),
    "configmaps": ("create", "get", "list", "patch", "delete"),
    "pods": ("list",),
    "pods/log": ("get",),
    "events": ("list",),
    "jobs.batch": ("list", "delete"),
}
"""Permissions that submitting, following, stopping, resuming and gc need."""
QUEUE_RIGHTS = {"workloads.kueue.x-k8s.io": ("list",)}
AT_ONCE = 8


def of_profile(profile: KubeRay, services: Services) -> list[Check]:
    """Return the checks of the cluster, its bucket and its registry; only the first if the server does not answer."""
    kube = Kube.connect(context=profile.context, namespace=profile.namespace)
    kube = Kube(access=kube.access, namespace=kube.namespace, patience=Patience(tries=2))
    results = checks(kube, profile)
    if results[0].state == "fail":
        return results
    return [*results, *_storage(profile.storage, services), *services.mlflow(profile.mlflow.uri)]


def _storage(storage: Storage, services: Services) -> list[Check]:
    """Check the bucket; a claim is checked with the namespace."""
    if storage.uri is not None:
        return [services.bucket(storage.uri)]
    if storage.claim is None:
        return [warn("storage", "neither uri nor claim", "name one: runs and checkpoints are lost with their pods")]
    return []


def checks(kube: Kube, profile: KubeRay) -> list[Check]:
    """Return all checks in the order in which they are shown; only the first if the server does not answer."""
    server_check = _server(kube)
    if server_check.state == "fail":
        return [server_check]
    steps: list[Callable[[], Sequence[Check]]] = [
        partial(_definition, kube, profile),
        partial(_operator, kube),
        partial(_rights, kube, profile),
        partial(_namespace, kube, profile),
        partial(_queue, kube, profile),
        partial(_named_objects, kube, profile),
        partial(_image, profile),
    ]
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        return [server_check, *(check for results in pool.map(lambda step: step(), steps) for check in results)]


def _server(kube: Kube) -> Check:
    try:
        version = kube.version()
    except GracefulError as e:
        return fail("api server", e.message, "check the network and the context (`kubectl config get-contexts`)")
    return ok("api server", f"{version}, context {kube.access.context}, as {kube.access.identity}")


def _definition(kube: Kube, profile: KubeRay) -> Sequence[Check]:
    """Return whether the kind RayJob is installed, in our version, with every field that we send."""
    name, install = "RayJob", "install KubeRay 1.6 or newer with its CustomResourceDefinitions"
    try:
        definition = kube.get("CustomResourceDefinition", CRD)
    except NotFoundError:
        return [fail(name, f"{CRD} is not defined there", install)]
    except ForbiddenError:
        return [warn(name, f"{CRD} may not be read", "`graceful plan` asks the server whether it takes the job")]
    except ApiError as e:
        return [fail(name, e.message, "try again")]
    versions = [version["name"] for version in definition["spec"]["versions"] if version.get("served")]
    if "v1" not in versions:
        return [fail(name, f"{CRD} is served as {', '.join(versions)}, not v1", install)]
    schema = validate.prune(definition)["properties"]["spec"]
    unknown = sorted(set(_unknown(manifests.render(_sample(), profile)[-1]["spec"], schema, "spec")))
    if unknown:
        return [fail(name, f"ray.io/v1 lacks {', '.join(unknown)}", install)]
    return [ok(name, f"ray.io/{', '.join(versions)}, with every field that we send")]


def _sample() -> JobSpec:
    return JobSpec(name="doctor", run_id="doctor", command=("true",), document="{}", workers=1)


def _unknown(value: Any, rules: Document, path: str) -> Iterator[str]:
    """Yield the paths of keys that a schema does not know."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _unknown(item, rules.get("items") or {}, path)
    if not isinstance(value, dict) or rules.get("x-kubernetes-preserve-unknown-fields"):
        return
    properties, additional = rules.get("properties") or {}, rules.get("additionalProperties")
    for key, part in value.items():
        if key in properties:
            yield from _unknown(part, properties[key], f"{path}.{key}")
        elif properties and not additional:
            yield f"{path}.{key}"


def _operator(kube: Kube) -> Sequence[Check]:
    """Check the deployment that acts on RayJobs, wherever it is."""
    name, remedy = "KubeRay", "install the operator, or wait until it is ready; without it jobs wait forever"
    try:
        operators = [
            (document, image)
            for document in kube.list("Deployment").items
            for image in (container["image"] for container in document["spec"]["template"]["spec"]["containers"])
            if "kuberay" in image and "operator" in image
        ]
    except ForbiddenError:
        return [warn(name, "deployments of other namespaces may not be read", "ask whether the operator runs")]
    except ApiError as e:
        return [fail(name, e.message, "try again")]
    if not operators:
        return [fail(name, "no deployment runs an image of the operator", remedy)]
    return [_version(name, document, image, remedy) for document, image in operators]


def _version(name: str, document: Document, image: str, remedy: str) -> Check:
    version = image.partition("@")[0].rpartition(":")[2]
    ready_replicas = int((document.get("status") or {}).get("readyReplicas") or 0)
    description = f"{version} in namespace {document['metadata']['namespace']}, {ready_replicas} ready"
    if not ready_replicas:
        return fail(name, description, remedy)
    numbers = version.lstrip("v").split(".")[:2]
    if not all(part.isdecimal() for part in numbers):
        return warn(name, description, "its version cannot be read from its image; 1.6 or newer is tried")
    return (
        ok(name, description)
        if tuple(map(int, numbers)) >= OLDEST_OPERATOR
        else fail(name, description, "update it to 1.6 or newer")
    )


def _rights(kube: Kube, profile: KubeRay) -> Sequence[Check]:
    """Check every verb that we use, one by one."""
    needed = {**RIGHTS, **(QUEUE_RIGHTS if profile.queue else {})}
    pairs = [(verb, resource) for resource, verbs in needed.items() for verb in verbs]
    try:
        with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            allowed = list(pool.map(lambda pair: kube.can_i(*pair), pairs))
    except GracefulError as e:
        return [warn("permissions", e.message, "`graceful plan` shows what is refused")]
    missing_verbs: dict[str, list[str]] = {}
    for (verb, resource), granted in zip(pairs, allowed, strict=True):
        if not granted:
            missing_verbs.setdefault(resource, []).append(verb)
    if missing_verbs:
        rules = "; ".join(f"{resource}: {', '.join(verbs)}" for resource, verbs in missing_verbs.items())
        remedy = f"grant {kube.access.identity} a Role in {kube.namespace} with them (the chart's submitter has all)"
        return [fail("permissions", f"missing: {rules}", remedy)]
    return [ok("permissions", f"all {len(pairs)} that we use, in namespace {kube.namespace}")]


def _namespace(kube: Kube, profile: KubeRay) -> Sequence[Check]:
    """Check that the namespace exists, and how strict it is with pods; ours satisfy `restricted`."""
    name = "namespace"
    try:
        labels = kube.get("Namespace", profile.namespace)["metadata"].get("labels") or {}
    except NotFoundError:
        return [fail(name, f"{profile.namespace} does not exist", f"`kubectl create namespace {profile.namespace}`")]
    except ApiError as e:
        return [warn(name, f"{profile.namespace}: {e.message}", "whether it enforces PodSecurity is not known")]
    level = labels.get(ENFORCE)
    if level is None:
        remedy = f"`kubectl label namespace {profile.namespace} {ENFORCE}=restricted`; our pods satisfy it"
        return [warn(name, f"{profile.namespace}, PodSecurity enforces nothing", remedy)]
    return [ok(name, f"{profile.namespace}, PodSecurity {level}")]


def _queue(kube: Kube, profile: KubeRay) -> Sequence[Check]:
    """Check Kueue's LocalQueue, if the profile names one."""
    if profile.queue is None:
        return []
    name, remedy = "queue", "install Kueue and make the LocalQueue, or leave `queue` out of the profile"
    try:
        queue = kube.get("LocalQueue", profile.queue)
    except NotFoundError:
        return [fail(name, f"LocalQueue {profile.queue} is not in namespace {kube.namespace}", remedy)]
    except ApiError as e:
        return [warn(name, e.message, "whether it is active is not known")]
    status = queue.get("status") or {}
    active = next((condition for condition in status.get("conditions") or () if condition["type"] == "Active"), None)
    waiting = f", {status.get('pendingWorkloads', 0)} waiting, {status.get('admittedWorkloads', 0)} admitted"
    if active is None or active["status"] != "True":
        reason = " ".join(str((active or {}).get("message", "Kueue has not looked at it")).split())
        return [fail(name, f"{profile.queue} is not active: {reason}", "check its ClusterQueue and flavors")]
    return [ok(name, f"{profile.queue} is active{waiting}")]


def _named_objects(kube: Kube, profile: KubeRay) -> Sequence[Check]:
    """Check the secrets, claim and service account that the profile names."""
    secrets = [*profile.pull_secrets, *profile.env_from_secrets]
    secrets += [profile.mlflow.token_secret] if profile.mlflow.token_secret else []
    required = [("Secret", name) for name in dict.fromkeys(secrets)]
    required += [("ServiceAccount", profile.service_account)] if profile.service_account else []
    required += [("PersistentVolumeClaim", profile.storage.claim)] if profile.storage.claim else []
    return [_exists(kube, kind, name) for kind, name in required]


def _exists(kube: Kube, kind: str, name: str) -> Check:
    title = {"Secret": "secret", "ServiceAccount": "service account"}.get(kind, "claim")
    try:
        live = kube.get(kind, name)
    except NotFoundError:
        return fail(title, f"{kind} {name} is not in namespace {kube.namespace}", "create it: pods would wait for it")
    except ForbiddenError:
        return warn(title, f"{kind} {name} may not be read", "it must exist before a job starts")
    except ApiError as e:
        return fail(title, e.message, "try again")
    if kind != "PersistentVolumeClaim":
        return ok(title, name)
    phase = (live.get("status") or {}).get("phase", "Pending")
    modes = ", ".join(live["spec"].get("accessModes") or ())
    if phase != "Bound":
        return warn(
            title, f"{name} is {phase} ({modes})", "fine if its class binds with the first pod, else no pod starts"
        )
    return ok(title, f"{name}, {modes}")


def _image(profile: KubeRay) -> Sequence[Check]:
    """Check that the image is named by its digest: a tag can change in the middle of a run."""
    if "@sha256:" in profile.image:
        return [ok("image", f"{profile.image.partition('@')[0]}, pinned by digest")]
    return [warn("image", f"{profile.image} is not pinned", "name it by digest: NAME@sha256:...")]
