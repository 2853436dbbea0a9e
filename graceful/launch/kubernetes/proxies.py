"""The proxy to an API server: HTTPS_PROXY, HTTP_PROXY and NO_PROXY as kubectl reads them. Pure functions. Client.

kubectl follows Go's `golang.org/x/net/http/httpproxy`: names in NO_PROXY except themselves and their subdomains, those
that begin with a dot the subdomains alone; addresses, networks such as 10.0.0.0/8 and ports are understood; `*` excepts
everything. Loopback addresses are never reached by a proxy.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from graceful import redact
from graceful.errors import SpecError

PORTS = {"http": 80, "https": 443}


def of(server: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the URL of the proxy that the environment names for a server; None: it is reached straight.

    Raises:
        SpecError: It names one that cannot be used.
    """
    url = urlsplit(server)
    proxy = _variable(f"{url.scheme}_proxy", environment)
    if not proxy or _excepted(url.hostname or "", url.port or PORTS[url.scheme], _variable("no_proxy", environment)):
        return None
    return checked(proxy, where=f"{url.scheme.upper()}_PROXY")


def checked(proxy: str, *, where: str) -> str:
    """Return the URL of a proxy, with http:// where it has no scheme.

    Args:
        proxy: As it was written.
        where: Who names it, for messages.

    Raises:
        SpecError: It is not an HTTP proxy.
    """
    address = proxy if "://" in proxy else f"http://{proxy}"
    with contextlib.suppress(ValueError):
        url = urlsplit(address)
        if url.scheme in PORTS and url.hostname and url.port != 0:
            return address
    raise SpecError(f"{where}: proxy {redact.address(proxy)}: must be http://host:port or https://host:port")


def credentials(proxy: str) -> str | None:
    """Return `user:password` of a proxy's URL; None: it has none."""
    user, separator, _ = urlsplit(proxy).netloc.rpartition("@")
    return unquote(user) if separator else None


def _variable(name: str, environment: Mapping[str, str]) -> str:
    return environment.get(name.upper()) or environment.get(name) or ""


def _excepted(host: str, port: int, exceptions: str) -> bool:
    address = _address(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    entries = [entry.strip().lower() for entry in exceptions.split(",")]
    return "*" in entries or any(_matches(entry, host.lower(), address, port) for entry in entries if entry)


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _matches(entry: str, host: str, address: _Address | None, port: int) -> bool:
    if "/" in entry:
        with contextlib.suppress(ValueError):
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
    if _address(entry) is None:  # else colons are part of an address
        entry, colon, port_text = entry.rpartition(":") if entry.rpartition(":")[2].isdecimal() else (entry, "", "")
        if colon and int(port_text) != port:
            return False
    name = entry.removeprefix("[").removesuffix("]")
    if (excepted := _address(name)) is not None:
        return address == excepted
    name = name.removeprefix("*")
    return bool(name) and (host.endswith(name) if name.startswith(".") else f".{host}".endswith(f".{name}"))


def _address(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
