"""A Ray cluster of one node with its dashboard and job server, behind a token; ended with everything in it.

Never `ray stop`, which ends every Ray of the machine.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import urllib3

STARTED_SECONDS = 150.0


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """Where its dashboard is, where drivers join it, and its token."""

    address: str
    token: str
    port: int

    def joining(self) -> dict[str, str]:
        """Return the variables with which a driver on this machine joins it."""
        return {"RAY_ADDRESS": f"127.0.0.1:{self.port}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}


@contextmanager
def ray_cluster(*, cpus: int = 2) -> Iterator[RayCluster]:
    """Start it, wait until jobs can be submitted, end it."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a short path: sockets lie below it
    dashboard, agent, port = _free_ports(3)
    token = secrets.token_hex(32)
    options = {
        "--port": port,
        "--dashboard-host": "127.0.0.1",
        "--dashboard-port": dashboard,
        "--dashboard-agent-listen-port": agent,
        "--include-dashboard": "true",
        "--num-cpus": cpus,
        "--object-store-memory": 100_000_000,
        "--temp-dir": folder,
    }
    words = [f"{name}={value}" for name, value in options.items()]
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    bin_ = str(Path(sys.executable).parent)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_", "GRACEFUL_"))}
    env |= {**ours, "DS_ACCELERATOR": "cpu", "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}"}
    with (folder / "start.log").open("wb") as log:
        process = subprocess.Popen(
            [f"{bin_}/ray", "start", "--head", "--block", "--disable-usage-stats", *words],
            env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            cluster = RayCluster(address=f"http://127.0.0.1:{dashboard}", token=token, port=port)
            _wait(cluster, process, folder, agent)
            yield cluster
            ended = process.poll()
            assert ended is None, f"Ray ended by itself ({ended}): {(folder / 'start.log').read_text(encoding='utf-8')}"
        except Exception as e:
            if process.poll() is not None:
                e.add_note(f"Ray had ended by itself: {(folder / 'start.log').read_text(encoding='utf-8')[-4000:]}")
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            _end_what_is_left(folder)
            process.wait(timeout=30)
            shutil.rmtree(folder, ignore_errors=True)


def _wait(cluster: RayCluster, process: subprocess.Popen[bytes], folder: Path, agent: int) -> None:
    """Until the agent that starts jobs listens, which comes last."""
    end = time.monotonic() + STARTED_SECONDS
    headers = {"Authorization": f"Bearer {cluster.token}"}
    with urllib3.PoolManager(retries=False, timeout=5.0) as pool:
        while True:
            with suppress(urllib3.exceptions.HTTPError):
                if pool.request("GET", f"{cluster.address}/api/jobs/", headers=headers).status == 200 and _open(agent):
                    return
            assert process.poll() is None, (folder / "start.log").read_text(encoding="utf-8")
            assert time.monotonic() < end, f"no Ray after {STARTED_SECONDS:g} s; see {folder}"
            time.sleep(0.5)


def _open(port: int) -> bool:
    """Return whether the agent listens; it does so on the machine's own address."""
    listening = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in listening)


def _end_what_is_left(folder: Path) -> None:
    """Kill processes that name the cluster's own folder."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(folder).encode() in (path / "cmdline").read_bytes():
                os.kill(int(path.name), signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    """Return the ports on which no process listens, all different."""
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in taken]
    finally:
        for one in taken:
            one.close()
