"""Merge a profile's overrides of pods into their templates, as `kubectl patch --type=strategic` would. Pure functions.

Maps merge key by key and null removes a key. Lists of things with names merge by name; every other list replaces ours.
`$patch: delete` removes an item, `$patch: replace` replaces a map or a list. In one thing we differ from kubectl: a
volume replaces ours of its name, because a volume that has two sources is refused. Runs on the client.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graceful.errors import SpecError
from graceful.launch.kubernetes import harden
from graceful.launch.resources import quantity

if TYPE_CHECKING:
    from graceful.launch.kuberay.machines import Pod

MAIN = "main"
"""Stands in overrides for the container that graceful runs in, whose name differs from pod to pod."""
DIRECTIVE = "$patch"
KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "schedulingGates": "name",
}
"""Lists of a pod template that merge, and the key that names their items."""
Json = dict[str, Any]


def applied(template: Json, *pods: Pod, where: Sequence[str], ends: bool = False) -> Json:
    """Return a template with labels, annotations and overrides of sections of a profile, the last winning.

    Args:
        template: Hardened; stays as it is.
        pods: The sections.
        where: Their names in the profile, for messages.
        ends: The pod must end by itself, so that no other container may run on beside it.

    Raises:
        SpecError: An override does not fit, or keeps the pod from ending.
    """
    result = template
    for pod, section in zip(pods, where, strict=True):
        metadata = {"labels": pod.labels, "annotations": pod.annotations}
        said = {"metadata": {key: value for key, value in metadata.items() if value}}
        result = merged(result, {key: value for key, value in said.items() if value}, where=section)
        if pod.overrides:
            patch = _with_names(pod.overrides, template)
            result = merged(result, patch, where=f"{section}.overrides")
            result = _hardened(result, template)
            _require_quantities(patch, where=f"{section}.overrides.spec")
            _require_same_containers(result, template, where=f"{section}.overrides.spec.containers", ends=ends)
    return result


def merged(base: Json, patch: Mapping[str, Any], *, where: str) -> Json:
    """Return a map with another merged into it; neither changes.

    Raises:
        SpecError: A list stands where a map is, or an item of a list has no name.
    """
    if patch.get(DIRECTIVE) == "replace":
        return {key: copy.deepcopy(value) for key, value in patch.items() if key != DIRECTIVE}
    result = copy.deepcopy(base)
    for key, value in patch.items():
        path = f"{where}.{key}"
        if value is None:
            result.pop(key, None)
        elif key in KEYS and isinstance(value, list):
            result[key] = _merged_lists(result.get(key) or [], value, key, where=path)
        elif isinstance(value, Mapping):
            old = result.get(key)
            if isinstance(old, list):
                raise SpecError(f"profile.{path}: must be a list, got keys: {', '.join(map(str, value))}")
            result[key] = merged(old or {}, value, where=path)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _merged_lists(base: list[Any], patch: list[Any], name: str, *, where: str) -> list[Any]:
    key = KEYS[name]
    items = [] if any(_directive(item) == "replace" and key not in item for item in patch) else list(base)
    for number, item in enumerate(patch):
        if not isinstance(item, Mapping) or (key not in item and _directive(item) != "replace"):
            raise SpecError(f"profile.{where}.{number}: an item of {name} is a map with {key}, got {item!r}")
        if key not in item:
            continue
        place = next((place for place, old in enumerate(items) if old.get(key) == item[key]), None)
        if _directive(item) == "delete":
            items = [old for old in items if old.get(key) != item[key]]
        elif place is None:
            items.append({part: copy.deepcopy(value) for part, value in item.items() if part != DIRECTIVE})
        else:
            old = (
                {part: items[place][part] for part in item if part in items[place]}
                if name == "volumes"
                else items[place]
            )
            items[place] = merged(old, item, where=f"{where}.{number}")
    return items


def _directive(item: Any) -> Any:
    return item.get(DIRECTIVE) if isinstance(item, Mapping) else None


def _with_names(overrides: Mapping[str, Any], template: Json) -> Json:
    """Return overrides in which `main` is replaced by the names of the template's own containers."""
    patch = copy.deepcopy(dict(overrides))
    spec = patch.get("spec", {})
    meant = [item for item in spec.get("containers") or () if isinstance(item, Mapping) and item.get("name") == MAIN]
    if not meant:
        return patch
    spec["containers"] = [item for item in spec["containers"] if item not in meant]
    for kind in ("containers", "initContainers"):
        own = template["spec"].get(kind) or ()
        named = [{**item, "name": container["name"]} for container in own for item in meant]
        if named or spec.get(kind):
            spec[kind] = [*named, *(spec.get(kind) or ())]
    return patch


def _hardened(result: Json, template: Json) -> Json:
    """Return the template with what PodSecurity demands in containers that an override has added."""
    spec = dict(result["spec"])
    for kind in ("containers", "initContainers"):
        own = {container["name"] for container in template["spec"].get(kind) or ()}
        if spec.get(kind):
            spec[kind] = [
                container
                if container["name"] in own
                else {
                    **container,
                    "securityContext": {**harden.security_context(), **container.get("securityContext", {})},
                }
                for container in spec[kind]
            ]
    return {**result, "spec": spec}


def _require_quantities(patch: Mapping[str, Any], *, where: str) -> None:
    spec = patch.get("spec", {})
    for kind in ("containers", "initContainers"):
        for number, container in enumerate(spec.get(kind) or ()):
            for part, amounts in (container.get("resources") or {}).items():
                for resource, amount in (amounts or {}).items() if part in ("limits", "requests") else ():
                    try:
                        quantity("0" if amount is None else amount)
                    except ValueError as e:
                        place = f"{where}.{kind}.{number}.resources.{part}.{resource}"
                        raise SpecError(f"profile.{place}: {e}") from e


def _require_same_containers(result: Json, template: Json, *, where: str, ends: bool) -> None:
    """Refuse a template whose first container is not ours: KubeRay runs Ray in the first one."""
    own = [container["name"] for container in template["spec"]["containers"]]
    names = [container["name"] for container in result["spec"].get("containers") or ()]
    if names[: len(own)] != own:
        raise SpecError(f"profile.{where}: the container {own[0]} must stay, because graceful runs in it")
    if ends and len(names) > len(own):
        raise SpecError(
            f"profile.{where}: {names[len(own)]} would keep the pod from ending, and the job with it; write it under"
            " initContainers with restartPolicy: Always, which ends with the pod"
        )
