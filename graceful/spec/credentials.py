"""Refuse secrets in a spec, and say where they belong instead. Runs on the client."""

from __future__ import annotations

from graceful import redact
from graceful.environment import REGISTRY_VARIABLE, WEBHOOK_VARIABLE
from graceful.errors import SpecError
from graceful.spec.refresh import RefreshSpec

INSTEAD = {"registry.uri": REGISTRY_VARIABLE, "registry.webhook": WEBHOOK_VARIABLE}
"""Variables that are read where a spec leaves the key out."""


def remember(spec: RefreshSpec) -> None:
    """Hide what is secret in a spec in every message of this process."""
    redact.remember_password(spec.registry.uri or "")
    if spec.registry.webhook:
        redact.remember(spec.registry.webhook)


def refuse_recorded(spec: RefreshSpec, where: str) -> None:
    """Refuse what a version would record for good, and addresses of which only the redacted form is left.

    Raises:
        SpecError: One line for the first.
    """
    for key in redact.certain(spec.task.model_dump(mode="json"), "task"):
        raise SpecError(
            f"{key} in {where}: looks like a secret, and a version records its task; let the task read it from an"
            " environment variable, or, if it is none, name the option otherwise (..._name, ..._type)"
        )
    for key, value in (("registry.uri", spec.registry.uri), ("registry.webhook", spec.registry.webhook)):
        if redact.HIDDEN in (value or ""):
            raise SpecError(
                f"{key} in {where}: holds {redact.HIDDEN}, which stands for a secret that was hidden; write the address"
                f" itself, or leave {key} out and set {INSTEAD[key]}"
            )


def refuse_travelling(spec: RefreshSpec, *, to: str, variable: str) -> None:
    """Refuse secrets in a spec that others can read where it travels.

    Args:
        spec: What would travel.
        to: Who can read it there, in words.
        variable: How a variable gets there, in words.

    Raises:
        SpecError: One line for the first.
    """
    document, recorded = spec.dump(), spec.recorded()
    hidden = [f"registry.{key}" for key, value in document["registry"].items() if recorded["registry"][key] != value]
    for key in (*hidden, *redact.certain(document["task"], "task")):
        what = "the address of a webhook, which is a secret" if key == "registry.webhook" else "a secret"
        alternative = INSTEAD.get(key)
        remedy = (
            f"leave it out and set {alternative} {variable}" if alternative else f"let the task read it from {variable}"
        )
        raise SpecError(f"{key}: holds {what}, and {to}; {remedy}")
    if redact.message(spec.description) != spec.description:
        raise SpecError(f"description: holds a secret, and {to}; take it out")
