"""A stand-in for a node's kubelet that serves scripted pod logs to a real API server, and hangs up where told.

The API server asks the address in the Node's status, over TLS with a certificate it trusts; the test bed has one.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from graceful.launch.kubernetes.kube import Kube
from graceful.launch.refusals import ConflictError


@contextmanager
def log_server(
    kube: Kube, pki: Path, *, node: str, logs: Mapping[str, list[str]], cuts: list[int]
) -> Iterator[list[str]]:
    """Yield a node whose pods have these logs.

    Args:
        kube: For the Node object.
        pki: Folder with kubelet.crt and kubelet.key.
        node: Its name.
        logs: Lines with timestamps, by pod; may grow while it serves.
        cuts: The connection is cut after so many lines, one entry per request; used up from the front.

    Yields:
        The queries it was asked.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

        def do_GET(self) -> None:
            split = urlsplit(self.path)
            asked.append(split.query)
            lines = _since(logs.get(split.path.split("/")[3], []), parse_qs(split.query).get("sinceTime"))
            cut = cuts.pop(0) if cuts else None
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for line in lines[:cut]:
                self._chunk(line.encode() + b"\n")
            if cut is None:
                self._chunk(b"")
            else:
                self._chunk(b"2026-11-22T13:00:00.9Z half a li")
                self.close_connection = True

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pki / "kubelet.crt", pki / "kubelet.key")
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        _register(kube, node, server.server_address[1])
        yield asked
    finally:
        kube.delete("Node", node)
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def _register(kube: Kube, node: str, port: int) -> None:
    with suppress(ConflictError):
        kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }
    kube.patch("Node", node, {"status": status}, part="status")


def _since(lines: list[str], moment: list[str] | None) -> list[str]:
    if not moment:
        return list(lines)
    start = datetime.fromisoformat(moment[0])
    return [line for line in lines if datetime.fromisoformat(f"{line[:19]}+00:00") >= start]
