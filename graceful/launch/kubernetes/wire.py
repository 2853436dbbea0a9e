"""HTTP to an API server: a request or a stream of lines, repeated where that is safe. Client."""

from __future__ import annotations

import json
import ssl
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import urllib3

from graceful import __version__
from graceful.launch.backend import Document
from graceful.launch.kubernetes import proxies
from graceful.launch.kubernetes.kubeconfig import Access
from graceful.launch.refusals import ApiError, Request, ThrottledError, may_pass, refused, unreachable
from graceful.patience import Patience

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
"""Server errors that may pass."""


@dataclass(kw_only=True)
class Wire:
    """Connections to one API server as one identity.

    Attributes:
        access: How it is reached.
        patience: Between repeated requests.
    """

    access: Access
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        options: dict[str, Any] = {"maxsize": 4, "retries": False}
        if self.access.tls is not None:
            if self.access.tls.verify_mode is ssl.CERT_NONE:  # as the kubeconfig asks for
                urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
            options["ssl_context"] = self.access.tls
            if self.access.hostname:
                options |= {"server_hostname": self.access.hostname, "assert_hostname": self.access.hostname}
        proxy = self.access.proxy
        if proxy and (user := proxies.credentials(proxy)):
            options["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=user)
        self._pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)

    def ask(self, method: str, url: str, request: Request, body: Document | None = None, form: str = "") -> Document:
        """Send until answered; what may be repeated is, within patience.

        Args:
            method: Of HTTP.
            url: Where.
            request: For messages.
            body: JSON.
            form: The form of the body: apply, merge, or empty for plain JSON.

        Raises:
            ApiError: As `refusals` draws them.
        """
        once = partial(self._once, method, url, request, body, form)
        return self.patience.repeat(once, failure=ApiError, may_pass=partial(_repeatable, method))

    def _once(self, method: str, url: str, request: Request, body: Document | None, form: str) -> Document:
        data = None if body is None else json.dumps(body).encode()
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        try:
            response = self._pool.request(method, url, body=data, headers=self._headers(form), timeout=timeout)
            if response.status < 400:
                document: Document = json.loads(response.data)
                return document
        except urllib3.exceptions.HTTPError as e:
            raise unreachable(request, self.access.server, e) from e
        except ValueError as e:
            raise unreachable(request, self.access.server, ValueError("an answer that is not JSON")) from e
        raise refused(request, response.status, response.data, response.headers)

    def lines(self, url: str, request: Request, *, silence: float | None) -> Generator[bytes, None, None]:
        """Yield lines of an answer as they arrive, each with its newline; one without was cut or is the last.

        Args:
            url: Where.
            request: For messages.
            silence: Seconds without a byte after which the connection counts as lost; None: never.

        Raises:
            ApiError: As `refusals` draws them.
        """
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=silence)
        headers = self._headers("")
        headers["Accept-Encoding"] = "identity"
        try:
            response = self._pool.request("GET", url, headers=headers, timeout=timeout, preload_content=False)
            try:
                if response.status >= 400:
                    raise refused(request, response.status, response.read(), response.headers)
                yield from _lines(response)
            finally:
                response.close()
        except urllib3.exceptions.HTTPError as e:
            unreachable_error = unreachable(request, self.access.server, e)
            unreachable_error.facts["silent"] = isinstance(e, urllib3.exceptions.ReadTimeoutError)
            raise unreachable_error from e

    def _headers(self, form: str) -> urllib3.HTTPHeaderDict:
        content = {"apply": "application/apply-patch+yaml", "merge": "application/merge-patch+json"}
        headers = urllib3.HTTPHeaderDict(
            {
                "Accept": "application/json",
                "Accept-Encoding": "gzip",
                "Content-Type": content.get(form, "application/json"),
                "User-Agent": f"graceful/{__version__}",
            }
        )
        if self.access.token is not None:
            headers["Authorization"] = f"Bearer {self.access.token()}"
        for name, value in self.access.headers:  # one header for each group
            headers.add(name, value)
        return headers


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    pieces: list[bytes] = []  # joined once: some programs write megabytes without a newline
    for chunk in response.stream(65536):
        *complete, partial = chunk.split(b"\n")
        for line in complete:
            yield b"".join([*pieces, line, b"\n"])
            pieces = []
        pieces.append(partial)
    if last := b"".join(pieces):  # cut behind the server, which ends its answer as if it were complete,
        yield last  # or the last line


def _repeatable(method: str, error: ApiError) -> bool:
    if isinstance(error, ThrottledError):
        return True
    if method == "POST":
        return isinstance(
            error.__cause__, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError
        )
    return may_pass(error)
