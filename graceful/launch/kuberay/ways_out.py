"""Access of pods to services outside the cluster: proxies, and certificates of a company. Pure functions. Client.

Variables are in capitals alone. gRPC, over which Ray's processes talk, reads proxies in lower case only, and must not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graceful.launch.kuberay.machines import CaBundle
    from graceful.launch.kuberay.profile import KubeRay

DIRECT = ("localhost", "127.0.0.1", ".svc", ".cluster.local", "$(KUBERNETES_SERVICE_HOST)")
"""What no proxy of a cluster leads to; Kubernetes fills in the address of its API."""
TRUST_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Who reads them: Python, Arrow and Go; MLflow; boto3; curl."""
VOLUME = "trusted-certificates"
Json = dict[str, Any]


def variables(profile: KubeRay) -> dict[str, str]:
    """Return the variables that every pod gets."""
    proxy, bundle = profile.proxy, profile.ca_bundle
    result = {
        **({"HTTPS_PROXY": proxy.https} if proxy.https else {}),
        **({"HTTP_PROXY": proxy.http} if proxy.http else {}),
    }
    if result:
        result["NO_PROXY"] = ",".join((*DIRECT, *proxy.direct))
    if bundle is not None:
        result |= dict.fromkeys(TRUST_VARIABLES, f"{bundle.folder}/{bundle.key}")
    return result


def volumes(bundle: CaBundle | None) -> list[Json]:
    """Return the volume with the certificates; none: there are none."""
    return [] if bundle is None else [{"name": VOLUME, "configMap": {"name": bundle.config_map}}]


def mounts(bundle: CaBundle | None) -> list[Json]:
    """Return where a container sees them."""
    return [] if bundle is None else [{"name": VOLUME, "mountPath": bundle.folder, "readOnly": True}]
