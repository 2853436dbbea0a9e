"""Make a pod acceptable to PodSecurity `restricted`: non-root, no token, read-only root. Pure functions. Client."""

from __future__ import annotations

from typing import Any

HOME = "/home/ray"
"""Writable home of the processes: Ray's token and compiled torch extensions live there."""
WRITABLE = {"tmp": "/tmp", "home": HOME}
"""Volumes that a read-only root needs, and where they are mounted."""


def pod(spec: dict[str, Any], *, user: int | None) -> dict[str, Any]:
    """Return a pod's specification with every container hardened; the argument stays as it is.

    Args:
        spec: With `containers`; volumes and mounts that it already has are kept.
        user: Numeric user and group of all processes; None: the cluster chooses them.
    """
    ids = {} if user is None else {"runAsUser": user, "runAsGroup": user, "fsGroup": user}
    name = [{"name": "USER", "value": "ray"}] if user is None else []  # a chosen user has no name in the image
    volumes = [{"name": name, "emptyDir": {}} for name in WRITABLE]
    return {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            **ids,
            "fsGroupChangePolicy": "OnRootMismatch",  # a chown of every checkpoint would delay each start
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **spec,
        "containers": [_container(container, name) for container in spec["containers"]],
        "volumes": [*volumes, *spec.get("volumes", [])],
    }


def _container(container: dict[str, Any], name: list[dict[str, str]]) -> dict[str, Any]:
    mounts = [{"name": name, "mountPath": path} for name, path in WRITABLE.items()]
    return {
        **container,
        "securityContext": security_context(),
        "env": [{"name": "HOME", "value": HOME}, *name, *container.get("env", [])],
        "volumeMounts": [*mounts, *container.get("volumeMounts", [])],
    }


def security_context() -> dict[str, Any]:
    """Return what every container of ours is forbidden; also for sidecars that an operator adds."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
