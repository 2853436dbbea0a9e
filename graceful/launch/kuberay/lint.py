"""Rules against mistakes in RayJobs that Kubernetes accepts, each with a remedy. Pure functions. Client.

Every rule has a stable id and one function that yields what it found. `production` turns the warnings of STRICT rules
into errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from graceful import redact
from graceful.launch import names
from graceful.launch.backend import Document, Finding, Severity
from graceful.launch.kuberay import pod_rules
from graceful.launch.kuberay.rules import Rule, Subject, Violations, rules_of

_PROBES_HANG = ((2, 11), (2, 37))


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


def _autoscaler(subject: Subject) -> Violations:
    if subject.cluster.get("enableInTreeAutoscaling") and not (subject.cluster.get("autoscalerOptions") or {}).get(
        "securityContext"
    ):
        yield "spec.rayClusterSpec.autoscalerOptions", "its sidecar has no securityContext: refused by PodSecurity"


def _name(subject: Subject) -> Violations:
    name = str(subject.metadata.get("name") or "")
    if not names.is_job_name(name):
        yield "metadata.name", f"{name!r} ({len(name)} characters) is not DNS-1035 of at most {names.LONGEST}"


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


ERROR, WARNING = Severity.ERROR, Severity.WARNING
JOB_RULES = rules_of(
    ("no-shutdown", ERROR, _no_shutdown, "set shutdownAfterJobFinishes: true"),
    ("ttl-without-shutdown", ERROR, _ttl_without_shutdown, "set shutdownAfterJobFinishes: true, or drop the ttl"),
    ("ray-version", WARNING, _ray_version, "use one version of Ray in image, ray_version and here"),
    ("local-working-dir", ERROR, _working_dir, "put the code into the image, or a zip into a bucket"),
    ("deletion-rules", ERROR, _deletion_rules, "use shutdownAfterJobFinishes and ttlSecondsAfterFinished"),
    ("autoscaler-context", ERROR, _autoscaler, "set autoscalerOptions.securityContext, or switch autoscaling off"),
    ("name", ERROR, _name, "lower case letters, digits and hyphens, starting with a letter"),
    ("secret-in-sight", ERROR, _secrets, "put it into a Secret and name that in env_from_secrets"),
    ("elastic-deepspeed", ERROR, _elastic, "set minReplicas = replicas = maxReplicas"),
    ("ray-probes-hang", ERROR, _probes_hang, "use Ray 2.52 or later"),
)
RULES = (*JOB_RULES, *pod_rules.RULES)
STRICT = {"mutable-image", "head-on-spot", "retry-without-checkpoints", "grace-period"}
