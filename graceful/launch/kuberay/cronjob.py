"""Render a schedule as a CronJob whose pods submit a refresh or a backfill and wait for it. Pure functions. Client.

The objects are those of the chart: same labels, same arguments, same naming of versions after their firing. What a pod
reads (spec, profile, task file) is an immutable ConfigMap named by its content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graceful import documents
from graceful.environment import FIRING_VARIABLE
from graceful.errors import EXIT_CODES, EXIT_INFRASTRUCTURE, EXIT_PASSED, SpecError
from graceful.launch import names
from graceful.launch.backend import Document
from graceful.launch.kuberay import manifests, overrides, pod_templates, ways_out
from graceful.launch.kuberay.machines import Submitter
from graceful.launch.kuberay.profile import KubeRay
from graceful.launch.kubernetes import harden

SCHEDULE = f"{names.PREFIX}schedule"
"""Label of everything that belongs to a schedule: its name."""
FOLDER = "/etc/graceful/job"
SPEC_FILE, PROFILE_FILE = "spec.yaml", "profile.yaml"
LONGEST = 52
"""Characters of a CronJob's name: its Jobs append eleven."""
LATE_SECONDS = 3600
"""A firing that is later than this is missed."""
HISTORY = 3
RETRIES = 2
"""Retries of a firing after a failure of infrastructure; a wrong spec, a held version or failed training is not
retried."""
FINAL_CODES = [code for code in EXIT_CODES if code not in (EXIT_PASSED, EXIT_INFRASTRUCTURE)]
_VOLUME = "job"
_COMPONENT = {"app.kubernetes.io/component": "schedule"}
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A schedule: what it submits, when, and with which account.

    Attributes:
        name: The name of the schedule and of its CronJob; versions are named after it.
        cron: As `cron.read` takes it.
        time_zone: The time zone of the cron expression.
        model: Family that is refreshed; `model-firing` is the run id.
        document: The resolved spec as JSON values.
        files: Texts by file name that lie beside it.
        account: ServiceAccount that may submit.
        command: Words after `graceful` that submit something else than the spec, under the name that `--name` gives it;
            empty: `submit` with the spec.
    """

    name: str
    cron: str
    time_zone: str
    model: str
    document: Mapping[str, Any]
    account: str
    files: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()


def render(schedule: Schedule, profile: KubeRay) -> tuple[Json, Json]:
    """Return the ConfigMap and the CronJob, in the order in which they are sent.

    Raises:
        SpecError: The name is too long, or spec and files are too large.
    """
    if len(schedule.name) > LONGEST:
        raise SpecError(f"schedule {schedule.name!r}: {len(schedule.name)} characters, a CronJob has at most {LONGEST}")
    config = _config_map(schedule, profile)
    return config, _cronjob(schedule, profile, config["metadata"]["name"])


def _config_map(schedule: Schedule, profile: KubeRay) -> Json:
    profile_document = profile.model_copy(update={"context": None}).model_dump(mode="json", exclude_defaults=True)
    data = {SPEC_FILE: _yaml(schedule.document), PROFILE_FILE: _yaml(profile_document), **schedule.files}
    size = sum(len(text.encode()) for text in data.values())
    if size > manifests.LARGEST:
        limit = manifests.LARGEST
        raise SpecError(f"{schedule.name}: spec and files hold {size} bytes, a ConfigMap at most {limit}")
    name = names.document_name(schedule.name, _yaml(data))
    meta = {"name": name, "namespace": profile.namespace, "labels": {**_labels(schedule.name), **_COMPONENT}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "immutable": True, "data": data}


def _cronjob(schedule: Schedule, profile: KubeRay, config: str) -> Json:
    labels = _labels(schedule.name)
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": schedule.name, "namespace": profile.namespace, "labels": {**labels, **_COMPONENT}},
        "spec": {
            "schedule": schedule.cron,
            "timeZone": schedule.time_zone,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": LATE_SECONDS,
            "successfulJobsHistoryLimit": HISTORY,
            "failedJobsHistoryLimit": HISTORY,
            "jobTemplate": {
                "metadata": {"labels": labels},
                "spec": {
                    "backoffLimit": RETRIES,
                    "podFailurePolicy": {
                        "rules": [
                            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                            {"action": "FailJob", "onExitCodes": {"operator": "In", "values": FINAL_CODES}},
                        ]
                    },
                    "template": _template(schedule, profile, config),
                },
            },
        },
    }


def _template(schedule: Schedule, profile: KubeRay, config: str) -> Json:
    labels = {**_labels(schedule.name), **_COMPONENT, names.ROLE: "schedule"}
    template = {"metadata": {"labels": labels}, "spec": _pod(schedule, profile, config)}
    section = "submitter" if profile.scheduled is None else "scheduled"
    return overrides.applied(template, profile.pods, _settings(profile), where=("pods", section), ends=True)


def _settings(profile: KubeRay) -> Submitter:
    return profile.scheduled or profile.submitter


def _pod(schedule: Schedule, profile: KubeRay, config: str) -> Json:
    """Return a pod that submits a run and waits for its end, so that the next firing sees this one as running."""
    profile_option = f"--on={FOLDER}/{PROFILE_FILE}"
    words, name = ["submit", f"{FOLDER}/{SPEC_FILE}"], "--set=name"
    if schedule.command:
        words, name = [word.replace("$(", "$$(") for word in schedule.command], "--name"  # $(X) stands for a variable
    submit = _container(profile, "submit", [*words, profile_option, "--yes", f"{name}=$({FIRING_VARIABLE})"])
    wait = _container(profile, "wait", ["status", f"{schedule.model}-$({FIRING_VARIABLE})", profile_option, "--wait"])
    pulls = [{"name": secret} for secret in profile.pull_secrets]
    pod = harden.pod(
        {
            "restartPolicy": "Never",
            "serviceAccountName": schedule.account,
            "automountServiceAccountToken": True,
            "terminationGracePeriodSeconds": pod_templates.GRACE_SECONDS,
            **({"imagePullSecrets": pulls} if pulls else {}),
            **pod_templates.placement(_settings(profile).placed_like(profile.head)),
            "containers": [submit, wait],
            "volumes": [
                {"name": _VOLUME, "configMap": {"name": config}},
                *ways_out.volumes(profile.ca_bundle),
            ],
        },
        user=profile.user,
    )
    submit_container, wait_container = pod["containers"]
    return {**pod, "initContainers": [submit_container], "containers": [wait_container]}


def _container(profile: KubeRay, name: str, arguments: Sequence[str]) -> Json:
    label = "metadata.labels['batch.kubernetes.io/job-name']"
    firing = {"name": FIRING_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": label}}}
    common = pod_templates.submitter_container(profile, _settings(profile))
    mount = {"name": _VOLUME, "mountPath": FOLDER, "readOnly": True}
    return {
        "name": name,
        "image": profile.image,
        "imagePullPolicy": profile.pull_policy,
        "command": ["graceful"],
        "args": list(arguments),
        "env": [firing, *common.get("env", ())],
        "resources": common["resources"],
        "volumeMounts": [mount, *common.get("volumeMounts", ())],
    }


def config_of(template: Document) -> str:
    """Name of the ConfigMap that a pod mounts; empty if it mounts none."""
    for volume in template["spec"].get("volumes") or ():
        if volume["name"] == _VOLUME and "configMap" in volume:
            return str(volume["configMap"]["name"])
    return ""


def _labels(name: str) -> dict[str, str]:
    key, value = names.MANAGED_BY
    return {"app.kubernetes.io/name": value, key: value, SCHEDULE: name}


def _yaml(document: Any) -> str:
    return documents.dump(document)
