"""Sixty-four refreshes registered and promoted at once, through a network in which every request goes wrong once.

A row says what was injected, how often the writers' commands ran, and what a look at the registry without faults found:
versions, the champion, events, edges. Writers of four machines share a server and nothing else.
A row replaces that of the same fault.

    python -m benchmarks.lineage_faults [--writers 64] [--fault NAME ...]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import results
from tests.support import mlflow_server
from tests.support import mlflow_versions as versions
from tests.support.registry_faults import Fault, WriterRun, run_writers

PATIENCE = {"MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0", "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0"}
"""Retries without pauses: what is tested is what they do, not how long they wait."""


class Killable:
    """A server that can be killed and started again under the same address."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.port, self.stack = folder, mlflow_server.free_port(), stack
        self.server: ExitStack | None = None

    def start(self) -> str:
        """Returns the address."""
        self.server = self.stack.enter_context(ExitStack())
        database, served = self.folder / "mlflow.db", self.folder / "served"
        return self.server.enter_context(mlflow_server.server(database, served, port=self.port))

    def restart(self, after: float) -> Callable[[], None]:
        """Return what happens meanwhile: the server dies in the middle and comes back."""

        def happen() -> None:
            time.sleep(after)
            assert self.server is not None
            self.server.close()
            self.start()

        return happen


def run(fault: Fault, writers: int, folder: Path) -> WriterRun:
    """Run the writers under one fault, on a server of their own."""
    folder.mkdir()
    versions.local_store(folder).versions("none")  # the schema, before the server opens it
    (folder / "served").mkdir()
    with ExitStack() as stack:
        server = Killable(folder, stack)
        uri = server.start()
        meanwhile = server.restart(10.0) if fault is Fault.SERVER_KILLED else None
        return run_writers(uri, folder / "writers", fault, writers, model="glyphs", meanwhile=meanwhile)


def main() -> None:
    """Run every fault; write the rows after each, so that an interrupted run keeps them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writers", type=int, default=64)
    parser.add_argument("--fault", action="append", choices=[fault.name for fault in Fault])
    options = parser.parse_args()
    os.environ.update(PATIENCE)
    chosen = [Fault[name] for name in options.fault] if options.fault else list(Fault)
    start, kept = time.monotonic(), results.FOLDER / "lineage_faults.json"
    rows = json.loads(kept.read_text())["rows"] if kept.exists() else list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="graceful-writers-") as scratch:
        for fault in chosen:
            began = time.monotonic()
            found = run(fault, options.writers, Path(scratch) / fault.name)
            row = {**found.row(), "writers": options.writers, "seconds": round(time.monotonic() - began, 1)}
            print(row, *found.repairs[:5], *found.failures[:5], sep="\n  ", flush=True)
            assert found.good, f"{fault}: something was lost or doubled"
            rows = [one for one in rows if one["fault"] != row["fault"]] + [row]
            results.write("lineage_faults", rows, time.monotonic() - start)


if __name__ == "__main__":
    main()
