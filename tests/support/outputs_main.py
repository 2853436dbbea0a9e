"""Build a cache on Ray workers in a process of its own: `python -m tests.support.outputs_main JSON`, one line a block.

{"spec": ..., "folder": bundle, "home": ..., "die_at": int or null}: the driver gives up at so many rows. It is not
killed, because Ray would leave its agents behind for minutes.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graceful import spec, tasks
from graceful.models.stored import StoredVersion
from graceful.programs.outputs.predecessor_outputs import CachedOutputs, Views
from graceful.storage import Mirror
from graceful.training import ray_outputs

GAVE_UP = 9


def main(document: str) -> None:
    wanted = json.loads(document)
    ray_outputs.WORTH_IT = -math.inf
    resolved, folder, home = spec.parse(wanted["spec"]), Path(wanted["folder"]), Path(wanted["home"])
    task = tasks.build(resolved.task)
    samples = task.samples("train")

    def tell(row: Mapping[str, Any]) -> None:
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
        if wanted["die_at"] is not None and row["step"] >= wanted["die_at"]:
            raise SystemExit(GAVE_UP)

    outputs = CachedOutputs(
        samples=samples,
        views=Views.of(resolved, samples, augments=task.augments),
        home=home,
        mirror=Mirror.of(home),
        spec=resolved,
        progress=tell,
    )
    outputs.of(StoredVersion(folder=folder, augment_like=resolved.task))


if __name__ == "__main__":
    main(sys.argv[1])
