"""Templates of the pods of a job: head, workers, submitter. Pure functions. Client."""

from __future__ import annotations

import json
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
from graceful.launch import names
from graceful.launch.job import FILES, JobSpec
from graceful.launch.kuberay import overrides, ways_out
from graceful.launch.kuberay.ranks import Ranks
from graceful.launch.kubernetes import harden
from graceful.launch.resources import cores, quantity, written

if TYPE_CHECKING:
    from graceful.launch.kuberay.machines import Machine, Submitter, Worker
    from graceful.launch.kuberay.profile import KubeRay

SPEC_FILE = "spec.json"
SUBMITTER = "ray-job-submitter"
"""Name of the container whose log is the run's."""
GRACE_SECONDS = 120
"""Between SIGTERM and SIGKILL."""
DRAIN_VARIABLE = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
DRAIN_SECONDS = 100
"""How long Ray waits for a node to become idle; below the grace period, or it is killed while draining."""
HEAD_DRAIN_SECONDS = 5
"""The same for heads. An actor of Ray Train that outlives its program (`_AutoscalingCoordinatorActor`) keeps each from
becoming idle, so that it would stay for the whole time; and an attempt ends with its head, where the driver is."""
STOP_SECONDS = 90
"""How long a stopped driver may take to write its checkpoint."""
GROUP = "workers"
HEAD_ANNOTATIONS = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
"""Ask those who tidy nodes to leave heads alone: a lost head starts the driver again."""
Json = dict[str, Any]


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


def head(job: JobSpec, profile: KubeRay) -> Json:
    """Return the template of the head, on which the driver runs."""
    env = {
        DRAIN_VARIABLE: str(HEAD_DRAIN_SECONDS),
        "RAY_JOB_STOP_SIGNAL": "SIGINT",  # Ray's default kills the driver after 3 s, in the middle of a checkpoint
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
        **({RUN_SPEC_VARIABLE: f"{FILES}/{SPEC_FILE}"} if job.document is not None else {}),
        **({RANK_VARIABLE: ranks(job, profile).variable} if job.workers else {}),
    }
    container = _ray_container(job, profile, profile.head, name="ray-head", env=env)
    template = _template(job, profile, profile.head, container, role="head")
    template["metadata"]["annotations"] = dict(HEAD_ANNOTATIONS)
    return overrides.applied(template, profile.pods, profile.head, where=("pods", "head"))


def group(job: JobSpec, profile: KubeRay) -> Json:
    """Return the group of workers with its template."""
    fill = ranks(job, profile)
    container = _ray_container(job, profile, fill.worker, name="ray-worker", env={})
    template = _template(job, profile, fill.worker, container, role="rank")
    if fill.shared_memory is not None:
        _share_memory(template["spec"], fill.shared_memory)
    if profile.worker.topology is not None:
        template["metadata"]["annotations"] = profile.worker.topology.annotations
    template = overrides.applied(template, profile.pods, profile.worker, where=("pods", "worker"))
    return {
        "groupName": GROUP,
        "replicas": fill.pods,
        "minReplicas": fill.pods,
        "maxReplicas": fill.pods,
        "resources": fill.offered,
        "rayStartParams": {},
        "template": template,
    }


def _share_memory(pod: Json, size: str) -> None:
    """Give a pod a /dev/shm of a size; it is memory of the pod."""
    pod["volumes"].append({"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": size}})
    pod["containers"][0]["volumeMounts"].append({"name": "shared-memory", "mountPath": "/dev/shm"})


def _ray_container(job: JobSpec, profile: KubeRay, machine: Machine, *, name: str, env: Mapping[str, str]) -> Json:
    outside = ways_out.variables(profile)
    variables = {**_environment(job, profile), **outside, **env, **profile.env, **machine.env, **job.env}
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
            *ways_out.mounts(profile.ca_bundle),
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
    spec = {
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        **_service_account(profile),
        **placement(machine),
        "containers": [container],
        "volumes": [
            {"name": "runs", **_runs(profile, machine)},
            *([{"name": "spec", "configMap": {"name": config_name(job)}}] if job.document is not None else []),
            *ways_out.volumes(profile.ca_bundle),
        ],
    }
    spot = {names.SPOT: "true"} if machine.spot else {}
    return {
        "metadata": {"labels": {**labels(job), names.ROLE: role, **spot}},
        "spec": harden.pod(spec, user=profile.user),
    }


def _runs(profile: KubeRay, machine: Machine) -> Json:
    """Return the source of the volume for runs and caches: the claim of all pods, or a disk of the pod's node."""
    if profile.storage.claim:
        return {"persistentVolumeClaim": {"claimName": profile.storage.claim}}
    disk = machine.local_disk
    if disk is None:
        return {"emptyDir": {}}
    if disk.storage_class is None:
        return {"emptyDir": {"sizeLimit": str(disk.size)}}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": disk.storage_class,
        "resources": {"requests": {"storage": str(disk.size)}},
    }
    return {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}


def submitter_template(job: JobSpec, profile: KubeRay) -> Json:
    """Return the submitter's template; the operator's own has no security context and 200 MiB."""
    container = {
        "name": SUBMITTER,
        "image": job.image or profile.image,
        "imagePullPolicy": profile.pull_policy,
        **submitter_container(profile, profile.submitter),
    }
    placed = placement(profile.submitter.placed_like(profile.head))
    spec = {
        "restartPolicy": "Never",
        **_service_account(profile),
        **placed,
        "containers": [container],
        "volumes": ways_out.volumes(profile.ca_bundle),
    }
    template = {
        "metadata": {"labels": {**labels(job), names.ROLE: "submitter"}},
        "spec": harden.pod(spec, user=profile.user),
    }
    return overrides.applied(template, profile.pods, profile.submitter, where=("pods", "submitter"), ends=True)


def submitter_container(profile: KubeRay, submitter: Submitter) -> Json:
    """Return resources, variables and mounts of a container that submits or waits."""
    variables = {**ways_out.variables(profile), **submitter.env}
    return {
        "resources": submitter_resources(submitter),
        **({"env": _pairs(variables)} if variables else {}),
        **({"volumeMounts": mounts} if (mounts := ways_out.mounts(profile.ca_bundle)) else {}),
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
    amounts |= {name: str(amount) for name, amount in machine.resources.items()}
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


def labels(job: JobSpec) -> dict[str, str]:
    """Return the labels by which a job and its pods are found."""
    key, value = names.MANAGED_BY
    return {key: value, names.RUN_ID: names.label_value(job.run_id)}


def data(job: JobSpec) -> dict[str, str]:
    """Return the texts of a job by file name."""
    return {SPEC_FILE: job.document or "", **job.files}


def config_name(job: JobSpec) -> str:
    """Return a name that depends on the content: a running job keeps what it was started with."""
    content = json.dumps(data(job), sort_keys=True)
    return names.document_name(names.job_name(job.run_id), content)


def _pairs(variables: Mapping[str, str]) -> list[Json]:
    return [{"name": name, "value": value} for name, value in variables.items()]
