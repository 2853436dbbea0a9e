"""What `benchmarks.kube_clients` runs in processes of their own, with one client each.

python -m benchmarks.kube_client_probes read CLIENT TIMES                        # a ConfigMap, once a second
python -m benchmarks.kube_client_probes rotate CLIENT FILE                       # writes FILE between two reads
python -m benchmarks.kube_client_probes watch CLIENT NAME NAMESPACE LAST SECONDS # prints the states it was shown
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CLIENTS = ["graceful", "official", "lightkube", "kr8s"]
Reader = Callable[[], object]


def reader(client: str) -> Reader:
    """Return what reads ConfigMap x of the namespace default."""
    if client == "graceful":
        kube = importlib.import_module("graceful.launch.kubernetes.kube").Kube.connect()
        return lambda: kube.get("ConfigMap", "x", namespace="default")
    if client == "official":
        kubernetes = importlib.import_module("kubernetes")
        kubernetes.config.load_kube_config()
        api = kubernetes.client.CoreV1Api()
        return lambda: api.read_namespaced_config_map("x", "default")
    if client == "lightkube":
        lightkube = importlib.import_module("lightkube")
        core = importlib.import_module("lightkube.resources.core_v1")
        light = lightkube.Client()
        return lambda: light.get(core.ConfigMap, "x", namespace="default")
    objects = importlib.import_module("kr8s.objects")
    return lambda: objects.ConfigMap.get("x", namespace="default")


def states(client: str, name: str, namespace: str) -> Iterator[str]:
    """Yield the state of every event, with the watch of the client as its documentation shows it."""
    fields = f"metadata.name={name}"
    if client == "graceful":
        kube = importlib.import_module("graceful.launch.kubernetes.kube").Kube.connect(namespace=namespace)
        wait = importlib.import_module("graceful.launch.kubernetes.wait")
        for change in wait.changes(kube, "ConfigMap", fields=fields):
            if change.object:
                yield change.object["data"]["state"]
    elif client == "official":
        kubernetes = importlib.import_module("kubernetes")
        kubernetes.config.load_kube_config()
        api, watch = kubernetes.client.CoreV1Api(), kubernetes.watch.Watch()
        for event in watch.stream(api.list_namespaced_config_map, namespace, field_selector=fields):
            yield event["object"].data["state"]
    elif client == "lightkube":
        lightkube = importlib.import_module("lightkube")
        core = importlib.import_module("lightkube.resources.core_v1")
        retry = importlib.import_module("lightkube.types").on_error_retry
        of = {"namespace": namespace, "fields": {"metadata.name": name}, "on_error": retry}
        for _, found in lightkube.Client().watch(core.ConfigMap, **of):
            yield found.data["state"]
    else:
        kr8s = importlib.import_module("kr8s")
        for _, found in kr8s.watch("configmaps", namespace=namespace, field_selector=fields):
            yield found.raw["data"]["state"]


def watch(client: str, name: str, namespace: str, last: str, seconds: str) -> None:
    """Print the states that were shown as JSON, at the last one or when the time is over."""
    shown: list[str] = []

    def end() -> None:
        print(json.dumps(shown), flush=True)
        os._exit(0)

    timer = threading.Timer(float(seconds), end)
    timer.daemon = True
    timer.start()
    for state in states(client, name, namespace):
        shown.append(state)
        if state == last:
            end()
    shown.append("ended")
    end()


def main(probe: str, client: str, *arguments: str) -> None:
    """Run one probe."""
    if probe == "watch":
        watch(client, *arguments)
        return
    read: Any = reader(client)
    if probe == "rotate":
        read()
        Path(arguments[0]).write_text("second", encoding="utf-8")
        time.sleep(61.0)
    for number in range(int(arguments[0]) if probe == "read" else 1):
        time.sleep(1.0 if number else 0.0)
        read()


if __name__ == "__main__":
    main(*sys.argv[1:])
