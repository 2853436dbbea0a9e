"""Could a published client of Kubernetes take the place of ours? Start, logins, and watches under faults.

    pip install --target DIR/lightkube lightkube; pip install --target DIR/kr8s kr8s
    python -m benchmarks.kube_clients --libraries DIR     # needs the current kube context; writes kube_clients.json

Four clients, each in processes of its own and used as its documentation shows: graceful's, the official one,
lightkube and kr8s. `start` is the processor time of a process that imports the client and reads one ConfigMap. Logins:
a server of the benchmark records what arrives when a kubeconfig asks for something that kubectl does; a token file is
read again 61 seconds after it was replaced. Watches: an object of the real API server changes 40 times within four
seconds while a proxy breaks every connection to it in one way, at a fifth of the events; counted are followers that
ended with an exception, that had not seen the last state 20 seconds after it was written (90 where a connection falls
silent, once), and states shown twice.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from benchmarks import kube_client_probes, results
from graceful.launch.kubernetes.kube import Kube
from tests.support.apiserver_proxy import Fault, Weather, proxied

STARTS, FOLLOWERS = 7, 6
CHANGES, PAUSE, WAIT, LONG_WAIT = 40, 0.1, 20.0, 90.0
ONCE = 1e-9
"""Chance with which a fault comes at the first opportunity and then no more."""
NAMESPACE = f"graceful-clients-{int(time.time())}"
OBJECT = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "default"}}
PLUGIN = """\
import json, sys
with open({runs!r}, "a") as file:
    file.write("x")
status = {{"token": "from-plugin", "expirationTimestamp": {until!r}}}
about = {{"apiVersion": "client.authentication.k8s.io/{version}", "kind": "ExecCredential"}}
print(json.dumps({{**about, "status": status}}))
"""


@contextmanager
def recording() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Serve one ConfigMap; yields the address and the headers of every request so far."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that http.server looks for
            if self.path.startswith("/version"):  # kr8s asks for it first
                body = json.dumps({"major": "1", "minor": "36", "gitVersion": "v1.36.3"}).encode()
            else:
                seen.append({name.lower(): value for name, value in self.headers.items()})
                body = json.dumps(OBJECT).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()


def kubeconfig(folder: Path, server: str, user: Mapping[str, Any]) -> Path:
    """Write a kubeconfig of one context, and return its path."""
    path = folder / "kubeconfig"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "default"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": dict(user)}],
    }
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def run(client: str, libraries: Path, probe: str, *arguments: str, **variables: str) -> tuple[str, float]:
    """Run a probe in a process of its own; returns the last line of what it printed and its processor seconds."""
    paths = [str(libraries / client), os.environ.get("PYTHONPATH", "")]
    shell = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", kube_client_probes.__name__, probe, client, *arguments]
    done = subprocess.run(command, env=shell, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return ("" if done.returncode == 0 else "failed: ") + (lines or ["nothing was printed"])[-1], seconds


def starts(client: str, libraries: Path) -> dict[str, Any]:
    """Processor seconds until one object is read."""
    with recording() as (server, seen), tempfile.TemporaryDirectory() as scratch:
        config = kubeconfig(Path(scratch), server, {"token": "secret"})
        found = [run(client, libraries, "read", "1", KUBECONFIG=str(config)) for _ in range(STARTS + 1)][1:]
        assert len(seen) >= STARTS, found
    seconds = sorted(one for _, one in found)
    return {
        "client": client,
        "what": "start",
        "median": round(statistics.median(seconds), 3),
        "least": round(seconds[0], 3),
        "most": round(seconds[-1], 3),
    }


def plugin(folder: Path, *, version: str, lasts: float) -> tuple[dict[str, Any], Path]:
    """Return a user that logs in with a plugin whose token lasts some seconds, and the file that counts its runs."""
    until = (datetime.now(UTC) + timedelta(seconds=lasts)).strftime("%Y-%m-%dT%H:%M:%SZ")
    runs, script = folder / "runs", folder / "plugin.py"
    script.write_text(PLUGIN.format(runs=str(runs), until=until, version=version), encoding="utf-8")
    about = {"apiVersion": f"client.authentication.k8s.io/{version}", "interactiveMode": "Never"}
    return {"exec": {**about, "command": sys.executable, "args": [str(script)]}}, runs


def logins(client: str, libraries: Path) -> list[dict[str, Any]]:
    """What arrives at the server, by what the kubeconfig asks for."""
    basic = "Basic " + base64.b64encode(b"ann:secret").decode()
    rotated: dict[str, Any] = {"tokenFile": "token"}
    cases: dict[str, tuple[dict[str, Any], str, str, dict[str, str]]] = {
        "impersonation (as)": ({"token": "t", "as": "bob"}, "Impersonate-User", "bob", {}),
        "user and password": ({"username": "ann", "password": "secret"}, "Authorization", basic, {}),
        "rotated token file": (rotated, "Authorization", "Bearer second", {}),
        "NO_PROXY with a network": (
            {"token": "t"},
            "Authorization",
            "Bearer t",
            {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
            | dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.0/8"),
        ),
    }
    rows = []
    for name, (user, header, wanted, variables) in cases.items():
        with recording() as (server, seen), tempfile.TemporaryDirectory() as scratch:
            token = Path(scratch) / "token"
            token.write_text("first")
            user = {**user, "tokenFile": str(token)} if user is rotated else user
            config = kubeconfig(Path(scratch), server, user)
            probe = ("rotate", str(token)) if user.get("tokenFile") else ("read", "1")
            said, _ = run(client, libraries, *probe, KUBECONFIG=str(config), **variables)
            met = bool(seen) and seen[-1].get(header.lower()) == wanted
        rows.append({"client": client, "what": name, "works": met, "said": said[:200]})
    for version, lasts in (("v1", 3600.0), ("v1beta1", 3600.0), ("v1", 2.0)):
        with recording() as (server, seen), tempfile.TemporaryDirectory() as scratch:
            user, runs = plugin(Path(scratch), version=version, lasts=lasts)
            config = kubeconfig(Path(scratch), server, user)
            said, _ = run(client, libraries, "read", "5", KUBECONFIG=str(config))
            arrived = [one.get("authorization") == "Bearer from-plugin" for one in seen]
            times = len(runs.read_text()) if runs.exists() else 0
        short = lasts < 10
        met = len(arrived) == 5 and all(arrived) and (times > 1 if short else times == 1)
        name = "plugin, token that expires" if short else f"plugin {version}, five reads with one login"
        rows.append({"client": client, "what": name, "works": met, "logins": times, "said": said[:200]})
    return rows


def watches(client: str, libraries: Path, kube: Kube, fault: Fault | None) -> dict[str, Any]:
    """Followers of one object each, behind a proxy with one fault; what they missed."""

    def follower(number: int) -> Counter[str]:
        name = f"{client}-{list(Fault).index(fault) if fault else 'none'}-{number}"
        body = {**OBJECT, "metadata": {"name": name, "namespace": NAMESPACE}, "data": {"state": "0"}}
        kube.create(body)
        chance = ONCE if fault is Fault.SILENT else 0.2
        weather = Weather(faults=(fault,) if fault else (), chance=chance, seed=number, only=NAMESPACE)
        with proxied(kube.access, weather) as access, tempfile.TemporaryDirectory() as scratch:
            config = kubeconfig(Path(scratch), access.server, {"token": "unused"})
            writer = threading.Timer(6.0, write, [name])
            writer.start()
            until = str(6.0 + CHANGES * PAUSE + (LONG_WAIT if fault is Fault.SILENT else WAIT))
            said, _ = run(client, libraries, "watch", name, NAMESPACE, str(CHANGES), until, KUBECONFIG=str(config))
            writer.join()
        if said.startswith("failed"):
            return Counter({"ended": 1, said.removeprefix("failed: ")[:90]: 1})
        states = json.loads(said)
        return Counter({
            "ended": int(states[-1:] == ["ended"]),
            "last state missed": int(str(CHANGES) not in states),
            "repeated": sum(count - 1 for state, count in Counter(states).items() if state not in ("0", "ended")),
        })  # fmt: skip

    def write(name: str) -> None:
        for state in range(1, CHANGES + 1):
            kube.patch("ConfigMap", name, {"data": {"state": str(state)}}, namespace=NAMESPACE)
            time.sleep(PAUSE)

    with ThreadPoolExecutor(FOLLOWERS) as pool:
        total = sum(pool.map(follower, range(FOLLOWERS)), Counter())
    known = ("ended", "last state missed", "repeated")
    return {
        "client": client,
        "what": f"watch: {fault.value if fault else 'no fault'}",
        "followers": FOLLOWERS,
        **{name: total[name] for name in known},
        "said": sorted(name for name in total if name not in known)[:2],
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", type=Path, required=True, help="folder of folders lightkube and kr8s")
    parser.add_argument("--clients", nargs="+", default=kube_client_probes.CLIENTS)
    options = parser.parse_args()
    begun, rows = time.perf_counter(), list[dict[str, Any]]()
    kube = Kube.connect(namespace=NAMESPACE)
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    for client in options.clients:
        found = [starts(client, options.libraries), *logins(client, options.libraries)]
        found += [watches(client, options.libraries, kube, fault) for fault in (None, *Fault)]
        for row in found:
            print(json.dumps(row), flush=True)
        rows += found
    kube.delete("Namespace", NAMESPACE)
    if options.clients == kube_client_probes.CLIENTS:
        print(results.write("kube_clients", rows, seconds=time.perf_counter() - begun))


if __name__ == "__main__":
    main()
