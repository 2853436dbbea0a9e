"""How the API server is reached and as whom: kubeconfig files, or the pod's own service account. Runs on the client.

Certificates and tokens, which most contexts use, are read here: a quarter of the start-up time of the official client,
whose loader takes over for everything else (exec plugins of clouds, OIDC). It is imported in this module only.
"""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graceful.errors import SpecError

POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PLAIN_USER = {"client-certificate", "client-certificate-data", "client-key", "client-key-data", "token", "tokenFile"}
PLAIN_AUTHORITY = {"certificate-authority", "certificate-authority-data", "insecure-skip-tls-verify", "tls-server-name"}
PLAIN_CLUSTER = PLAIN_AUTHORITY | {"server", "proxy-url"}


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
        token: Called for each request, because tokens rotate; None: the certificate is the identity.
    """

    server: str
    context: str
    identity: str
    namespace: str = "default"
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    hostname: str | None = None
    proxy: str | None = field(default=None, repr=False)
    token: Callable[[], str] | None = field(default=None, repr=False)


def load(context: str | None = None, *, files: Sequence[Path] | None = None, pod: Path = POD) -> Access:
    """Read $KUBECONFIG, else ~/.kube/config; without these, in a pod, its service account.

    Args:
        context: Name of a context; None: $GRACEFUL_CONTEXT, else the current one.
        files: In place of $KUBECONFIG; the first file that has an entry wins.
        pod: Where a pod finds its service account.

    Raises:
        SpecError: No configuration, no such context, or a file that cannot be read.
    """
    context = context or os.environ.get("GRACEFUL_CONTEXT") or None
    paths = [path for path in (_files() if files is None else files) if path.is_file()]
    if not paths and context is None and (pod / "token").is_file():
        return _in_cluster(pod)
    merged = _merge(paths)
    name = context or merged["current-context"]
    if not name or name not in merged["contexts"]:
        known = ", ".join(sorted(merged["contexts"])) or "none"
        raise SpecError(
            f"kube context {name or '(none current)'!r}: not found, known: {known}; set KUBECONFIG or --context"
        )
    chosen = merged["contexts"][name]
    cluster = merged["clusters"].get(chosen.get("cluster"), {})
    user = merged["users"].get(chosen.get("user"), {})
    identity = str(chosen.get("user", "anonymous"))
    place = {"context": name, "identity": identity, "namespace": chosen.get("namespace") or "default"}
    if set(user) - PLAIN_USER or set(cluster) - PLAIN_CLUSTER:
        return _through_the_client(name, paths, place)
    return _plain(cluster, user, place)


def _files() -> list[Path]:
    given = os.environ.get("KUBECONFIG")
    if given:
        return [Path(part).expanduser() for part in given.split(os.pathsep) if part]
    return [Path.home() / ".kube" / "config"]


def _merge(paths: Sequence[Path]) -> dict[str, Any]:
    merged: dict[str, Any] = {"current-context": "", "contexts": {}, "clusters": {}, "users": {}}
    for path in paths:
        document = _read(path)
        merged["current-context"] = merged["current-context"] or document.get("current-context") or ""
        for section, key in (("contexts", "context"), ("clusters", "cluster"), ("users", "user")):
            for entry in document.get(section) or ():
                merged[section].setdefault(entry["name"], _absolute(entry.get(key) or {}, path.parent))
    return merged


def _read(path: Path) -> dict[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # a safe one, in C
    except (OSError, yaml.YAMLError) as e:
        raise SpecError(f"kubeconfig {path}: cannot be read ({' '.join(str(e).split())[:200]}); set KUBECONFIG") from e
    return document if isinstance(document, dict) else {}


def _absolute(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    files = {"certificate-authority", "client-certificate", "client-key", "tokenFile"}
    return {key: str(folder / value) if key in files and value else value for key, value in entry.items()}


def _plain(cluster: Mapping[str, Any], user: Mapping[str, Any], place: dict[str, str]) -> Access:
    server = str(cluster.get("server", "")).rstrip("/")
    if not server:
        raise SpecError(f"kube context {place['context']!r}: its cluster has no server; correct the kubeconfig")
    token: Callable[[], str] | None = None
    if user.get("tokenFile"):
        token = _reader(Path(user["tokenFile"]))
    elif user.get("token"):
        token = str(user["token"]).strip
    tls = _tls(cluster, user, place["context"]) if server.startswith("https") else None
    proxy = cluster.get("proxy-url") or _proxy(server)
    return Access(server=server, tls=tls, hostname=cluster.get("tls-server-name"), proxy=proxy, token=token, **place)


def _proxy(server: str) -> str | None:
    """The one that the environment names, unless it excepts this server; a loopback address is never reached by one."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    host = urlsplit(server).hostname or ""
    proxies = getproxies()
    if host in ("127.0.0.1", "::1", "localhost") or proxy_bypass(host):
        return None
    return proxies.get(urlsplit(server).scheme)


def _tls(cluster: Mapping[str, Any], user: Mapping[str, Any], name: str) -> ssl.SSLContext:
    try:
        return _tls_from(cluster, user)
    except (OSError, ValueError) as e:  # ssl.SSLError is an OSError
        raise SpecError(f"kube context {name!r}: its certificates cannot be used ({e}); renew the kubeconfig") from e


def _tls_from(cluster: Mapping[str, Any], user: Mapping[str, Any]) -> ssl.SSLContext:
    embedded = cluster.get("certificate-authority-data")
    context = ssl.create_default_context(
        cafile=cluster.get("certificate-authority") if not embedded else None,
        cadata=base64.b64decode(embedded).decode() if embedded else None,
    )
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate, key = user.get("client-certificate"), user.get("client-key")
    with tempfile.TemporaryDirectory() as folder:  # the ssl module reads certificates from files only
        if user.get("client-certificate-data"):
            certificate = _written(Path(folder, "client.crt"), user["client-certificate-data"])
        if user.get("client-key-data"):
            key = _written(Path(folder, "client.key"), user["client-key-data"])
        if certificate:
            context.load_cert_chain(certificate, key)
    return context


def _written(path: Path, data: str) -> str:
    path.touch(mode=0o600)
    path.write_bytes(base64.b64decode(data))
    return str(path)


def _reader(path: Path) -> Callable[[], str]:
    def token() -> str:
        try:
            return path.read_text(encoding="utf-8").strip()
        except OSError as e:
            raise SpecError(f"token file {path}: cannot be read ({e.strerror}); renew the kubeconfig") from e

    return token


def _in_cluster(pod: Path) -> Access:
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    name = f"[{host}]" if ":" in host else host
    namespace = (pod / "namespace").read_text(encoding="utf-8").strip() if (pod / "namespace").is_file() else "default"
    return Access(
        server=f"https://{name}:{port}",
        context="in-cluster",
        identity=f"the service account of this pod in {namespace}",
        namespace=namespace,
        tls=ssl.create_default_context(cafile=str(pod / "ca.crt")),
        token=_reader(pod / "token"),
    )


def _through_the_client(name: str, paths: Sequence[Path], place: dict[str, str]) -> Access:
    """Contexts that need a plugin: half a second for the import, and then whatever the plugin takes."""
    from kubernetes import config
    from kubernetes.client import Configuration

    joined = os.pathsep.join(map(str, paths))
    found = Configuration()
    try:
        config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=joined, context=name, client_configuration=found
        )
    except Exception as e:  # plugins fail in every way a program can
        raise SpecError(
            f"kube context {name!r}: its login failed ({' '.join(str(e).split())[:200]}); log in again"
        ) from e
    if not found.api_key and not found.cert_file:  # the client logs why a plugin failed, and goes on as nobody
        raise SpecError(f"kube context {name!r}: its login failed; log in again, then repeat the command")
    tls = ssl.create_default_context(cafile=found.ssl_ca_cert) if found.host.startswith("https") else None
    if tls is not None and not found.verify_ssl:
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    if tls is not None and found.cert_file:
        tls.load_cert_chain(found.cert_file, found.key_file)
    return Access(server=found.host.rstrip("/"), tls=tls, hostname=found.tls_server_name, token=_bearer(found), **place)


def _bearer(configuration: Any) -> Callable[[], str] | None:
    if not configuration.api_key:
        return None

    def token() -> str:
        given: str = configuration.get_api_key_with_prefix("BearerToken", "authorization") or ""  # renewed when due
        return given.removeprefix("Bearer ")

    return token
