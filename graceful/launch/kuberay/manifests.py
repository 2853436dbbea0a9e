"""Render a job for KubeRay: a ConfigMap with what it reads and a RayJob. Pure functions, no templates. Client.

Retries make new clusters, so everything that must survive lies under the run's folder; names follow from the run id,
so that the same run is the same object. KubeRay's traps that shape these documents are named where they bite.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graceful.environment import (
    CPU_SETTINGS,
    HOME_VARIABLE,
    MLFLOW_SETTINGS,
    RANK_VARIABLE,
    RAY_SETTINGS,
    REGISTRY_VARIABLE,
    RUN_SPEC_VARIABLE,
    STORAGE_VARIABLE,
)
from graceful.errors import SpecError
from graceful.launch import names
from graceful.launch.job import FILES, JobSpec
from graceful.launch.kuberay import harden
from graceful.launch.kuberay.ranks import RESOURCE, Ranks
from graceful.launch.resources import cores, quantity, written

if TYPE_CHECKING:
    from graceful.launch.kuberay.profile import KubeRay, Machine, Submitter, Worker

SPEC_FILE = "spec.json"
GRACE_SECONDS = 120
"""Between SIGTERM and SIGKILL, on ranks and head: the control store must outlive ranks that drain."""
DRAIN_VARIABLE = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
DRAIN_SECONDS = 100
"""How long Ray waits for a node to become idle; below the grace period, or it is killed while draining."""
STOP_SECONDS = 90
"""How long a stopped driver may take to write its checkpoint."""
LARGEST = 1_000_000
"""Bytes that a ConfigMap holds, with some room for its own fields."""
GROUP = "workers"
_PLAIN = re.compile(r"[A-Za-z0-9_./:=,@%+-]+")
Json = dict[str, Any]


def render(job: JobSpec, profile: KubeRay) -> tuple[Json, ...]:
    """Return the documents in the order in which they are sent: ConfigMap (if the job reads a document), RayJob.

    Raises:
        SpecError: The command holds characters that the submitter's shell would read, or the document is too large.
    """
    return (*((config_map(job, profile),) if job.document is not None else ()), rayjob(job, profile))


def config_map(job: JobSpec, profile: KubeRay) -> Json:
    """Return the ConfigMap with the document that the driver reads, named by its content and immutable.

    Raises:
        SpecError: It is too large.
    """
    size = sum(len(text.encode()) for text in _data(job).values())
    if size > LARGEST:
        raise SpecError(f"{job.name}: spec and files hold {size} bytes, a ConfigMap at most {LARGEST}; build an image")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": _config_name(job),
            "namespace": profile.namespace,
            "labels": _labels(job),
        },
        "immutable": True,
        "data": _data(job),
    }


def rayjob(job: JobSpec, profile: KubeRay) -> Json:
    """Return the RayJob that computes the run."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": names.job_name(job.run_id),
            "namespace": profile.namespace,
            "labels": {**_labels(job), **_queue(job, profile)},
            "annotations": _annotations(job, profile),
        },
        "spec": {
            "submissionMode": "K8sJobMode",  # the submitter's log outlives the cluster, and its pod can be hardened
            "entrypoint": entrypoint(job.command),
            "backoffLimit": profile.retries.job if job.retries is None else job.retries,
            "submitterConfig": {"backoffLimit": profile.retries.submitter},
            "preRunningDeadlineSeconds": profile.deadlines.start,  # without it, a job waits for ever
            **_deadline(job, profile),
            "shutdownAfterJobFinishes": True,  # the default leaves machines running; Kueue demands it too
            "ttlSecondsAfterFinished": profile.deadlines.keep,
            "submitterPodTemplate": _submitter(job, profile),
            "rayClusterSpec": {
                "rayVersion": profile.ray_version,
                "enableInTreeAutoscaling": False,  # fixed size: gang scheduling and quota stay simple
                "authOptions": {"mode": "token"},
                "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": _head(job, profile)},
                "workerGroupSpecs": [_group(job, profile)] if job.workers else [],
            },
        },
    }


def entrypoint(command: tuple[str, ...]) -> str:
    """Return the command as one line.

    KubeRay pastes it unquoted into a shell script that runs in the submitter, so that only plain words are safe.

    Raises:
        SpecError: A word holds anything that a shell would read.
    """
    unsafe = next((word for word in command if not _PLAIN.fullmatch(word)), None)
    if unsafe is not None:
        raise SpecError(f"command word {unsafe!r}: a shell would read it; use letters, digits and _./:=,@%+- only")
    return " ".join(command)


def worker(job: JobSpec, profile: KubeRay) -> Worker:
    """Return the profile's worker, raised to what the ranks of the job need at least."""
    machine, required = profile.worker, job.resources
    count = Ranks.of(job, machine).per_pod
    updates: Json = {}
    if required.cpu is not None and count * required.cpu > quantity(machine.cpu):
        updates["cpu"] = cores(count * required.cpu)
    if required.memory is not None and count * required.memory > quantity(machine.memory):
        updates["memory"] = written(count * required.memory)
    return machine.model_copy(update=updates) if updates else machine


def ranks(job: JobSpec, profile: KubeRay) -> Ranks:
    """Return how the ranks of a job fill the profile's pods."""
    return Ranks.of(job, worker(job, profile))


def _head(job: JobSpec, profile: KubeRay) -> Json:
    env = {
        "RAY_JOB_STOP_SIGNAL": "SIGINT",  # Ray's default kills the driver after 3 s, in the middle of a checkpoint
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
        **({RUN_SPEC_VARIABLE: f"{FILES}/{SPEC_FILE}"} if job.document is not None else {}),
        **({RANK_VARIABLE: ranks(job, profile).variable} if job.workers else {}),
    }
    container = _ray_container(job, profile, profile.head, name="ray-head", env=env)
    return _template(job, profile, profile.head, container, role="head")


def _group(job: JobSpec, profile: KubeRay) -> Json:
    fill = ranks(job, profile)
    container = _ray_container(job, profile, fill.worker, name="ray-worker", env={})
    template = _template(job, profile, fill.worker, container, role="rank")
    if fill.shared_memory is not None:
        _share_memory(template["spec"], fill.shared_memory)
    return {
        "groupName": GROUP,
        "replicas": fill.pods,
        "minReplicas": fill.pods,
        "maxReplicas": fill.pods,
        "resources": {RESOURCE: str(fill.per_pod)},  # CPUs and GPUs follow from the limits
        "rayStartParams": {},
        "template": template,
    }


def _share_memory(pod: Json, size: str) -> None:
    """Give a pod a /dev/shm of a size; it is memory of the pod."""
    pod["volumes"].append({"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": size}})
    pod["containers"][0]["volumeMounts"].append({"name": "shared-memory", "mountPath": "/dev/shm"})


def _ray_container(job: JobSpec, profile: KubeRay, machine: Machine, *, name: str, env: Mapping[str, str]) -> Json:
    variables = {**_environment(job, profile), **env, **profile.env, **machine.env, **job.env}
    return {
        "name": name,
        "image": job.image or profile.image,
        "imagePullPolicy": profile.pull_policy,
        "env": _pairs(variables),
        **_env_from(profile),
        "resources": _resources(machine),
        "volumeMounts": [
            {"name": "runs", "mountPath": profile.storage.path},
            *([{"name": "spec", "mountPath": FILES, "readOnly": True}] if job.document is not None else []),
        ],
    }


def _environment(job: JobSpec, profile: KubeRay) -> dict[str, str]:
    uri = profile.mlflow.uri
    return {
        HOME_VARIABLE: profile.storage.path,
        **({STORAGE_VARIABLE: profile.storage.uri} if profile.storage.uri else {}),
        **({REGISTRY_VARIABLE: uri} if uri else {}),
        **MLFLOW_SETTINGS,
        "PYTHONUNBUFFERED": "1",
        **RAY_SETTINGS,
        DRAIN_VARIABLE: str(DRAIN_SECONDS),
        **({} if job.workers and worker(job, profile).gpu else CPU_SETTINGS),
    }


def _template(job: JobSpec, profile: KubeRay, machine: Machine, container: Json, *, role: str) -> Json:
    """Return the template of a pod; the labels of a RayJob reach the RayCluster and never its pods."""
    claim = profile.storage.claim
    runs = {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}
    spec = {
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        **_service_account(profile),
        **placement(machine),
        "containers": [container],
        "volumes": [
            {"name": "runs", **runs},
            *([{"name": "spec", "configMap": {"name": _config_name(job)}}] if job.document is not None else []),
        ],
    }
    spot = {names.SPOT: "true"} if machine.spot else {}
    return {
        "metadata": {"labels": {**_labels(job), names.ROLE: role, **spot}},
        "spec": harden.pod(spec, user=profile.user),
    }


def _submitter(job: JobSpec, profile: KubeRay) -> Json:
    """Return the submitter's template; the operator's own has no security context and 200 MiB."""
    container = {
        "name": "ray-job-submitter",
        "image": job.image or profile.image,
        "imagePullPolicy": profile.pull_policy,
        "resources": submitter_resources(profile.submitter),
        **({"env": _pairs(profile.submitter.env)} if profile.submitter.env else {}),
    }
    placed = placement(profile.submitter.placed_like(profile.head))
    spec = {"restartPolicy": "Never", **_service_account(profile), **placed, "containers": [container]}
    return {
        "metadata": {"labels": {**_labels(job), names.ROLE: "submitter"}},
        "spec": harden.pod(spec, user=profile.user),
    }


def _service_account(profile: KubeRay) -> Json:
    pulls = [{"name": name} for name in profile.pull_secrets]
    return {
        **({"serviceAccountName": profile.service_account} if profile.service_account else {}),
        **({"imagePullSecrets": pulls} if pulls else {}),
    }


def _resources(machine: Machine) -> Json:
    amounts = {"cpu": str(machine.cpu), "memory": str(machine.memory)}
    if machine.gpu:
        amounts[machine.gpu_resource] = str(machine.gpu)
    reserved = {} if machine.reserved_cpu is None else {"cpu": str(machine.reserved_cpu)}
    return {"requests": {**amounts, **reserved}, "limits": amounts}


def submitter_resources(submitter: Submitter) -> Json:
    """Return requests and limits of a pod that submits and waits."""
    half = int(quantity(submitter.memory)) // 2
    requests = {"cpu": cores(quantity(submitter.cpu) / 10), "memory": written(half)}
    return {"requests": requests, "limits": {"cpu": str(submitter.cpu), "memory": str(submitter.memory)}}


def placement(pod: Machine | Submitter) -> Json:
    """Return the fields of a pod that say on which nodes it may run, and before which others."""
    tolerations = [toleration.model_dump(exclude_none=True) for toleration in pod.tolerations or ()]
    return {
        **({"nodeSelector": pod.node_selector} if pod.node_selector else {}),
        **({"tolerations": tolerations} if tolerations else {}),
        **({"priorityClassName": pod.priority_class} if pod.priority_class else {}),
    }


def _env_from(profile: KubeRay) -> Json:
    token = profile.mlflow.token_secret
    secrets = (*profile.env_from_secrets, *((token,) if token else ()))
    return {"envFrom": [{"secretRef": {"name": secret}} for secret in secrets]} if secrets else {}


def _labels(job: JobSpec) -> dict[str, str]:
    key, value = names.MANAGED_BY
    return {key: value, names.RUN_ID: names.label_value(job.run_id)}


def _data(job: JobSpec) -> dict[str, str]:
    return {SPEC_FILE: job.document or "", **job.files}


def _config_name(job: JobSpec) -> str:
    """Return a name that depends on the content: a running job keeps what it was started with."""
    content = json.dumps(_data(job), sort_keys=True)
    return names.document_name(names.job_name(job.run_id), content)


def _queue(job: JobSpec, profile: KubeRay) -> dict[str, str]:
    queue = job.queue or profile.queue
    return {names.QUEUE: queue} if queue else {}


def _annotations(job: JobSpec, profile: KubeRay) -> dict[str, str]:
    image = job.image or profile.image
    digest = hashlib.sha256((job.document or entrypoint(job.command)).encode()).hexdigest()
    facts = {
        "config-hash": digest,
        **job.labels,
        "run-id": job.run_id,
        **({"image-digest": image.partition("@")[2]} if "@" in image else {}),
    }
    return {f"{names.PREFIX}{key}": facts[key] for key in sorted(facts)}


def _deadline(job: JobSpec, profile: KubeRay) -> Json:
    seconds = profile.deadlines.run if job.deadline is None else int(job.deadline)
    return {"activeDeadlineSeconds": seconds} if seconds else {}


def _pairs(variables: Mapping[str, str]) -> list[Json]:
    return [{"name": name, "value": value} for name, value in variables.items()]
