"""Render the job of a run again with the current profile, from the job that was submitted. Pure functions but one.
Client.

What a run computes (document, command, facts) is kept; image, machines, account, Secrets, volumes and limits are the
profile's. So a run that needed more memory gets it when it resumes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from graceful.environment import FIRING_VARIABLE, RESUMES_VARIABLE, WORKERS_VARIABLE
from graceful.errors import SpecError
from graceful.launch import names, plan
from graceful.launch.backend import Document
from graceful.launch.job import JobSpec, Resources
from graceful.launch.kuberay import manifests, pod_templates
from graceful.launch.kuberay.status import RESUMES

if TYPE_CHECKING:
    from graceful.launch.kuberay.profile import KubeRay
    from graceful.launch.kubernetes.kube import Kube

_DERIVED = {"run-id", "image-digest", RESUMES.removeprefix(names.PREFIX)}
"""Annotations that a job gets besides the facts of its specification."""
_KEPT = (FIRING_VARIABLE, WORKERS_VARIABLE)
"""Variables of the driver that belong to the run and not to the profile."""


def renewed(kube: Kube, sent: Document, profile: KubeRay, *, workers: int | None = None) -> dict[str, Any]:
    """Return the job that today's profile makes of a run.

    Args:
        kube: Has the document that the job reads.
        sent: The job as it was sent.
        profile: Today's.
        workers: Training processes from now on; None: as many as before.

    Raises:
        NotFoundError: The document is gone.
        SpecError: The job cannot be rendered, or has no such number of workers.
    """
    job = job_of(sent, _data(kube, sent))
    job = job if workers is None else _on_workers(job, workers)
    document = manifests.rayjob(job, profile)
    resumes = sent["metadata"]["annotations"].get(RESUMES)
    if resumes is not None:
        document["metadata"]["annotations"][RESUMES] = resumes
    return document


def job_of(sent: Document, data: Mapping[str, str]) -> JobSpec:
    """Return the job of a RayJob that was sent, with the data of the ConfigMap that it reads (empty: it reads none)."""
    annotations = sent["metadata"]["annotations"]
    text = data.get(pod_templates.SPEC_FILE)
    train = (json.loads(text) if text else {}).get("train") or {}
    spec = sent["spec"]
    facts = {
        key.removeprefix(names.PREFIX): value for key, value in annotations.items() if key.startswith(names.PREFIX)
    }
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    variables = {variable["name"]: variable.get("value", "") for variable in head.get("env") or ()}
    return JobSpec(
        name=facts.get("run-id", sent["metadata"]["name"]),
        run_id=facts.get("run-id", sent["metadata"]["name"]),
        command=tuple(spec["entrypoint"].split(" ")),
        env={name: variables[name] for name in _KEPT if name in variables},
        document=text,
        files={name: content for name, content in data.items() if name != pod_templates.SPEC_FILE},
        workers=int(variables.get(WORKERS_VARIABLE) or train.get("num_workers", 0)),
        resources=Resources(gpu=1 if train.get("use_gpu") else None),
        queue=(sent["metadata"].get("labels") or {}).get(names.QUEUE),
        labels={key: value for key, value in facts.items() if key not in _DERIVED},
    )


def _on_workers(job: JobSpec, workers: int) -> JobSpec:
    """Return a job that goes on with so many training processes; what it computes, and its name, stay."""
    train = (json.loads(job.document) if job.document else {}).get("train") or {}
    batch, accumulation = int(train.get("batch_size", 0)), int(train.get("accumulation", 1))
    if not job.workers or not batch:
        raise SpecError(f"--workers {workers}: {job.run_id} has no training processes; leave it out")
    possible = [number for number in range(1, batch + 1) if batch % (number * accumulation) == 0]
    if workers not in possible:
        raise SpecError(
            f"--workers {workers}: train.batch_size {batch} must be divisible by workers x accumulation {accumulation};"
            f" write one of {', '.join(map(str, possible))}"
        )
    return replace(job, workers=workers, env={**job.env, WORKERS_VARIABLE: str(workers)})


def difference(kube: Kube, sent: Document, renewed: Document) -> tuple[str, ...]:
    """Return how a job that would be sent differs from the one that was, as a diff; the server adds its defaults."""
    probe = copy.deepcopy(dict(renewed))
    name = probe["metadata"]["name"]
    probe["metadata"]["name"] = f"{name[: names.LONGEST - 2]}-x"  # the old job may still be there
    made = kube.create(probe, dry_run=True)
    made["metadata"]["name"] = name
    return plan.diff(_comparable(sent), _comparable(made))


def _comparable(job: Document) -> Document:
    """Return what a person decides about: without counters, and without what the server adds to the metadata."""
    spec = {key: value for key, value in copy.deepcopy(job["spec"]).items() if key not in ("suspend", "jobId")}
    for container in spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]:
        container["env"] = [item for item in container.get("env") or () if item["name"] != RESUMES_VARIABLE]
    meta = job["metadata"]
    kept = {key: value for key, value in (meta.get("annotations") or {}).items() if key.startswith(names.PREFIX)}
    kept.pop(RESUMES, None)
    metadata = {"name": meta["name"], "labels": meta.get("labels") or {}, "annotations": kept}
    return {"apiVersion": job["apiVersion"], "kind": job["kind"], "metadata": metadata, "spec": spec}


def _data(kube: Kube, sent: Document) -> Mapping[str, str]:
    """Return the data of the ConfigMap that a job reads; empty where it reads none."""
    pod = sent["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    for volume in pod.get("volumes") or ():
        name = (volume.get("configMap") or {}).get("name")
        if name:
            data: Mapping[str, str] = kube.get("ConfigMap", name)["data"]
            return data
    return {}
