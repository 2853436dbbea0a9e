"""Compare the documents of a plan with what is on a cluster, by dry runs. Changes nothing. Client."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from graceful.errors import GracefulError, SpecError
from graceful.launch import names, plan
from graceful.launch.backend import Change, Difference, Document, Finding, Severity
from graceful.launch.refusals import ConflictError, ForbiddenError, InvalidObjectError, NotFoundError

if TYPE_CHECKING:
    from graceful.launch.kubernetes.kube import Kube


def compare(
    connect: Callable[[], Kube] | None, documents: tuple[Document, ...]
) -> tuple[tuple[Difference, ...], tuple[Finding, ...]]:
    """Return what the server would do with each document; a server that does not answer is asked once only."""
    if connect is None:
        return tuple(_unknown(document, "not asked") for document in documents), ()
    differences: list[Difference] = []
    findings: list[Finding] = []
    failure = ""
    for document in documents:
        if failure:
            differences.append(_unknown(document, failure))
            continue
        try:
            differences.append(_dry_run(connect(), document))
        except GracefulError as e:
            finding = _refusal(document, e)
            findings.append(finding)
            refused = finding.rule != "unreachable"
            failure = "" if refused else e.message
            change = Change.REFUSED if refused else Change.UNKNOWN
            differences.append(Difference(document=plan.title(document), change=change, lines=(e.message,)))
    return tuple(differences), tuple(findings)


def same_run(live: Document, rendered: Document) -> bool:
    """Return whether a live job computes what the rendered one would."""
    keys = (names.CONFIG_HASH, names.RUN_ID)
    live_annotations, annotations = ((document["metadata"].get("annotations") or {}) for document in (live, rendered))
    return all(live_annotations.get(key) == annotations.get(key) for key in keys)


def name_taken(rendered: Document, live: Document) -> SpecError:
    """Return the error for a name that another job has."""
    digest = (live["metadata"].get("annotations") or {}).get(names.CONFIG_HASH, "")
    origin = f"with another spec (digest {digest[:12]})" if digest else "which graceful did not make"
    name = rendered["metadata"]["name"]
    return SpecError(
        f"{plan.title(rendered)} is there already {origin}; give this version another `name`, or stop and delete that"
        f" one (`kubectl delete rayjob {name} -n {rendered['metadata']['namespace']}`)"
    )


def _dry_run(kube: Kube, document: Document) -> Difference:
    kind, metadata = document["kind"], document["metadata"]
    try:
        live = kube.get(kind, metadata["name"], namespace=metadata["namespace"])
    except NotFoundError:
        return plan.difference(document, None, kube.create(document, dry_run=True))
    if kind == "RayJob" and not same_run(live, document):
        raise name_taken(document, live)
    return plan.difference(document, live, kube.apply(document, dry_run=True, force=True))


def _refusal(document: Document, error: GracefulError) -> Finding:
    rules: tuple[tuple[type[GracefulError], str], ...] = (
        (ForbiddenError, "forbidden"),
        (NotFoundError, "absent"),
        (InvalidObjectError, "invalid"),
        (ConflictError, "conflict"),
        (SpecError, "run-id-taken" if error.message.startswith(plan.title(document)) else "unreachable"),
    )
    rule = next((name for kind, name in rules if isinstance(error, kind)), "unreachable")
    return Finding(
        rule=rule,
        severity=Severity.ERROR,
        where=plan.title(document),
        message=error.message,
        remedy="",
    )


def _unknown(document: Document, reason: str) -> Difference:
    return Difference(document=plan.title(document), change=Change.UNKNOWN, lines=(reason,))


def left(rayjob: Difference) -> tuple[Finding, ...]:
    """Return a warning where a job is there that the profile would make differently today: submitting leaves it."""
    if rayjob.change is not Change.UPDATE:
        return ()
    return (
        Finding(
            rule="left-as-it-is",
            severity=Severity.WARNING,
            where=rayjob.document,
            message="it is there already, and submitting does not change it",
            remedy="resume it, if it has failed or was stopped: it is sent again with the present profile",
        ),
    )
