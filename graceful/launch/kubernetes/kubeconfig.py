"""Address and identity for an API server, from kubeconfig files or the pod's service account. Runs on the client."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from graceful import homes, redact
from graceful.environment import CONTEXT_VARIABLE
from graceful.errors import SpecError
from graceful.launch.kubernetes import login, proxies
from graceful.launch.kubernetes.login import Headers, Token

LARGEST = 2**24
"""Bytes of a kubeconfig."""
POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_SECTIONS = {"contexts": "context", "clusters": "cluster", "users": "user"}
_FILES = ("certificate-authority", "client-certificate", "client-key", "tokenFile")


@dataclass(frozen=True, kw_only=True)
class Access:
    """One API server and one identity.

    Attributes:
        server: URL without a slash at the end.
        context: Name in the kubeconfig; `in-cluster` for a pod.
        identity: Who we are, as far as the client can know; for messages.
        namespace: The default one of the context.
        tls: None for plain http.
        hostname: Name expected in the server's certificate; None: that of the URL.
        proxy: URL of an HTTP proxy; None: straight.
        token: Called for each request, because tokens rotate; None: the certificate or a header is the identity.
        headers: Name and value that go with each request: a password, whom we impersonate.
    """

    server: str
    context: str
    identity: str
    namespace: str = "default"
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    hostname: str | None = None
    proxy: str | None = field(default=None, repr=False)
    token: Token | None = field(default=None, repr=False)
    headers: Headers = field(default=(), repr=False)


def load(context: str | None = None, *, files: Sequence[Path] | None = None, pod: Path = POD) -> Access:
    """Read $KUBECONFIG, else ~/.kube/config; without these, in a pod, its service account.

    Args:
        context: Name of a context; None: $GRACEFUL_CONTEXT, else the current one.
        files: In place of $KUBECONFIG; the first file that has an entry wins.
        pod: Where a pod finds its service account.

    Raises:
        SpecError: No configuration, no such context, or a file or section that cannot be used.
    """
    context = context or os.environ.get(CONTEXT_VARIABLE) or None
    in_pod = (pod / "token").is_file()
    paths = _files(required=not in_pod) if files is None else files
    merged = _merge(paths)
    if not merged["contexts"] and context is None and in_pod:
        return _in_cluster(pod)
    name = context or merged["current-context"]
    if not name or name not in merged["contexts"]:
        contexts = ", ".join(sorted(merged["contexts"])) or "none"
        raise SpecError(
            f"kube context {name or '(none current)'!r}: not found, known: {contexts}; set KUBECONFIG or --context"
        )
    return _access(name, merged, paths)


def _files(*, required: bool) -> list[Path]:
    """Return the files that $KUBECONFIG names, or the one in the home directory.

    Args:
        required: Refuse to go on without a home directory.
    """
    configured = os.environ.get("KUBECONFIG")
    if configured:
        return [homes.expanded(part, what="KUBECONFIG") for part in configured.split(os.pathsep) if part]
    try:
        return [Path.home() / ".kube" / "config"]
    except RuntimeError as e:  # $HOME is not set, and this user has no entry in the system's list
        if not required:
            return []
        raise SpecError("~/.kube/config: there is no home directory; set KUBECONFIG to an absolute path") from e


def _merge(paths: Sequence[Path]) -> dict[str, Any]:
    merged: dict[str, Any] = {"current-context": "", "contexts": {}, "clusters": {}, "users": {}}
    for path in paths:
        document = _read(path)
        where = f"kubeconfig {path}"
        merged["current-context"] = merged["current-context"] or login.text(document, "current-context", where=where)
        for section in _SECTIONS:
            for name, entry in _entries(document, section, where):
                merged[section].setdefault(name, _absolute(entry, path.parent))
    return merged


def _read(path: Path) -> Mapping[str, Any]:
    """Return what a file holds; a missing one is like an empty one."""
    from graceful import documents

    try:
        document = documents.read(path, where=f"kubeconfig {path}", largest=LARGEST)
    except FileNotFoundError:
        return {}
    if document is None or isinstance(document, dict):
        return document or {}
    problem = f"must be a mapping with contexts, clusters and users, got {login.kind(document)}"
    raise SpecError(f"kubeconfig {path}: {problem}; set KUBECONFIG")


def _entries(document: Mapping[str, Any], section: str, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield name and content of what a section lists."""
    rows, key = document.get(section), _SECTIONS[section]
    _require(rows, list, where, section)
    names = set()
    for index, row in enumerate(rows or ()):
        _require(row, dict, where, f"{section}.{index}")
        name = login.text({f"{section}.{index}.name": row.get("name")}, f"{section}.{index}.name", where=where)
        if not name:
            raise SpecError(f"{where}: {section}.{index} has no name; correct it")
        if name in names:
            raise SpecError(f"{where}: {section}: {name!r} is there twice; keep one")
        names.add(name)
        _require(row.get(key), dict, where, f"{section}.{index}.{key}")
        yield name, row.get(key) or {}


def _require(value: object, form: type, where: str, what: str) -> None:
    if value is not None and not isinstance(value, form):
        expected = "a list" if form is list else "a mapping"
        raise SpecError(f"{where}: {what} must be {expected}, got {login.kind(value)}; correct it")


def _absolute(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return an entry whose paths do not depend on where we are; a command of a plugin is one if it has a slash."""
    changed: dict[str, Any] = {key: str(folder.absolute() / str(entry[key])) for key in _FILES if entry.get(key)}
    plugin = entry.get("exec")
    if isinstance(plugin, dict) and "/" in str(plugin.get("command")):
        changed["exec"] = {**plugin, "command": str(folder.absolute() / str(plugin["command"]))}
    return {**entry, **changed}


def _access(name: str, merged: Mapping[str, Any], paths: Sequence[Path]) -> Access:
    where, context = f"kube context {name!r}", merged["contexts"][name]
    cluster, _ = _named(merged, "cluster", context, where)
    user, identity = _named(merged, "user", context, where)
    server = _server(login.text(cluster, "server", where=where), where)
    credentials = login.login(user, cluster, where=where, files=paths, context=name)
    proxy = login.text(cluster, "proxy-url", where=where)
    impersonated = login.text(user, "as", where=where)
    return Access(
        server=server,
        context=name,
        identity=f"{impersonated} (impersonated by {identity})" if impersonated else identity,
        namespace=login.text(context, "namespace", where=where) or "default",
        tls=login.tls(cluster, credentials.certificate, where=where) if server.startswith("https") else None,
        hostname=login.text(cluster, "tls-server-name", where=where) or None,
        proxy=proxies.checked(proxy, where=where) if proxy else proxies.of(server),
        token=credentials.token,
        headers=credentials.headers,
    )


def _named(
    merged: Mapping[str, Any], kind: str, context: Mapping[str, Any], where: str
) -> tuple[Mapping[str, Any], str]:
    """Return the cluster or user of a context, and its name; a context without a user is anonymous."""
    name = login.text(context, kind, where=where)
    if not name:
        return {}, "anonymous"
    if name not in merged[f"{kind}s"]:
        raise SpecError(f"{where}: its {kind} {name!r} is not there; correct the kubeconfig")
    return merged[f"{kind}s"][name], name


def _server(server: str, where: str) -> str:
    if not server:
        raise SpecError(f"{where}: its cluster has no server; correct the kubeconfig")
    try:
        url = urlsplit(server)
        if url.scheme in proxies.PORTS and url.hostname and url.port != 0:
            return server.rstrip("/")
    except ValueError:
        pass
    address = redact.address(server)
    raise SpecError(f"{where}: server {address!r}: must be http://host:port or https://host:port; correct it")


def _in_cluster(pod: Path) -> Access:
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    name = f"[{host}]" if ":" in host else host
    file = pod / "namespace"
    namespace = login.content(file, "namespace") if file.is_file() else "default"
    return Access(
        server=f"https://{name}:{port}",
        context="in-cluster",
        identity=f"the service account of this pod in {namespace}",
        namespace=namespace,
        tls=login.tls({"certificate-authority": str(pod / "ca.crt")}, None, where="service account of this pod"),
        token=login.token_file(pod / "token"),
    )
