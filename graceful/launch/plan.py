"""The parts of a plan besides its documents: machines, prices, differences. Pure functions. Runs on the client."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from graceful import redact
from graceful.documents import needs_escapes, quoting
from graceful.launch import names
from graceful.launch.backend import Change, Difference, Document, Part
from graceful.launch.resources import GIB, demand

if TYPE_CHECKING:
    from graceful.launch.kuberay.profile import Prices

_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_SERVERS_OWN = {"managedFields", "resourceVersion", "uid", "generation", "creationTimestamp", "selfLink"}
CONTEXT_LINES = 2


def parts(rayjob: Document, prices: Prices | None = None) -> tuple[Part, ...]:
    """Return the machines that a RayJob needs: head, one part per worker group, submitter."""
    spec = rayjob["spec"]
    cluster = spec["rayClusterSpec"]
    groups = [(f"worker {group['groupName']}", group["replicas"], group) for group in cluster["workerGroupSpecs"]]
    pods = [
        ("head", 1, cluster["headGroupSpec"]),
        *((role if len(groups) > 1 else "worker", count, group) for role, count, group in groups),
        ("submitter", 1, {"template": spec["submitterPodTemplate"]}),
    ]
    return tuple(_part(role, count, group, prices) for role, count, group in pods)


def _part(role: str, count: int, group: Mapping[str, Any], prices: Prices | None) -> Part:
    template = group["template"]
    cpu, memory, gpu = demand(template["spec"]["containers"][0])
    gpu = int((group.get("resources") or {}).get("GPU", gpu))  # said there where KubeRay does not know the name
    part = Part(role=role, count=count, cpu=cpu, memory=memory, gpu=gpu)
    if prices is None:
        return part
    spot = template["metadata"]["labels"].get(names.SPOT) == "true"
    hourly = cpu * prices.cpu + memory / GIB * prices.memory + gpu * prices.gpu
    price = round(count * hourly * (prices.spot_factor if spot else 1.0), 6)
    return Part(role=role, count=count, cpu=cpu, memory=memory, gpu=gpu, price=price)


def title(document: Document) -> str:
    """Return kind and name, such as `RayJob glyphs-v2`."""
    return f"{document.get('kind')} {(document.get('metadata') or {}).get('name')}"


def difference(document: Document, live: Document | None, dry_run: Document) -> Difference:
    """Compare what is there with what the server would make of our document.

    Args:
        document: Ours.
        live: What is there; None: nothing.
        dry_run: The server's answer to a dry run.
    """
    if live is None:
        return Difference(document=title(document), change=Change.CREATE)
    lines = diff(live, dry_run)
    return Difference(document=title(document), change=Change.UPDATE if lines else Change.NONE, lines=lines)


def diff(old: Document, new: Document) -> tuple[str, ...]:
    """Return the unified diff of two objects as YAML, secrets hidden, without what only the server writes."""
    live_lines, sent_lines = (as_yaml(_own_fields(document)).splitlines() for document in (old, new))
    return tuple(difflib.unified_diff(live_lines, sent_lines, "there", "planned", lineterm="", n=CONTEXT_LINES))


def as_yaml(*documents: Document) -> str:
    """Return documents as one YAML stream, in the order of their keys, secrets hidden."""
    redacted = [redact.hidden(document) for document in documents]
    return str(yaml.dump_all(redacted, Dumper=_Plain, sort_keys=False, width=120, allow_unicode=True))


class _Plain(_DUMPER):  # type: ignore[misc]  # the C dumper where PyYAML has it
    """A dumper without anchors, because people read documents that repeat a value."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: Any, text: str) -> Any:
    """Represent texts of several lines as blocks, not on one line full of escapes."""
    style = '"' if needs_escapes(text) else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Plain.add_representer(str, _text)
quoting(_Plain)


def _own_fields(document: Document) -> dict[str, Any]:
    fields = {key: _sorted(part) for key, part in document.items() if key not in ("status", "metadata")}
    metadata = {key: part for key, part in (document.get("metadata") or {}).items() if key not in _SERVERS_OWN}
    return {"metadata": _sorted(metadata), **fields}


def _sorted(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _sorted(node[key]) for key in sorted(node)}
    return [_sorted(part) for part in node] if isinstance(node, list | tuple) else node


def image(rayjob: Document) -> str:
    """Return the image that a RayJob runs."""
    return str(rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"])
