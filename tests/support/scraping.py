"""Reads the endpoints of metrics of pods again and again, as a Prometheus with the chart's PodMonitor would."""

from __future__ import annotations

import contextlib
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

SECONDS = 2.0


@contextmanager
def scraped(pods: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """Yield the newest line of each of our gauges, by name; filled until the block ends."""
    lines: dict[str, str] = {}
    over = threading.Event()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    addresses = [_metrics_of(pod) for pod in pods]

    def scrape() -> None:
        while not over.wait(SECONDS):
            for address in addresses:
                with contextlib.suppress(OSError):
                    text = opener.open(address, timeout=5).read().decode()
                    ours = [line for line in text.splitlines() if line.startswith("ray_graceful_")]
                    lines.update({line.partition("{")[0].partition(" ")[0]: line for line in ours})

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        over.set()
        thread.join(timeout=30)


def _metrics_of(pod: Mapping[str, Any]) -> str:
    """Return the address that the PodMonitor means: the port with the name `metrics`."""
    ports = [port for container in pod["spec"]["containers"] for port in container.get("ports", ())]
    (port,) = [port["containerPort"] for port in ports if port["name"] == "metrics"]
    return f"http://{pod['status']['podIP']}:{port}/metrics"
