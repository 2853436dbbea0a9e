"""Check whether a package or service that programs need can be used: `python -m graceful.programs.probe torch`.

It runs in a process of its own, because importing is the test, and a broken package may end the process that imports
it. `graceful doctor` starts it.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable

from graceful import environment, homes, redact
from graceful.errors import EXIT_INFRASTRUCTURE, GracefulError, IntegrityError

Facts = dict[str, str]


def main(arguments: list[str] | None = None) -> int:
    """Run one probe; its facts go to stdout as one JSON object, a failure to stderr as one line with exit code 4."""
    name, *rest = sys.argv[1:] if arguments is None else arguments
    try:
        environment.clean()
        facts = PROBES[name](*rest)
    except GracefulError as e:
        sys.stderr.write(f"{e.message}\n")
        return EXIT_INFRASTRUCTURE
    except Exception as e:  # noqa: BLE001  # whatever a foreign package raises on import is the finding
        sys.stderr.write(redact.message(f"{type(e).__name__}: {' '.join(str(e).split())}") + "\n")
        return EXIT_INFRASTRUCTURE
    sys.stdout.write(json.dumps(facts) + "\n")
    return 0


def _version(module: str) -> str:
    return str(importlib.import_module(module).__version__)


def _torch() -> Facts:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
    return {"version": torch.__version__, "accelerator": names or "none, training runs on the CPU"}


def _deepspeed() -> Facts:
    accelerator = importlib.import_module("deepspeed.accelerator").get_accelerator()
    return {"version": _version("deepspeed"), "accelerator": str(accelerator.device_name())}


def _registry() -> Facts:
    from graceful.lineage import connection

    address = connection.resolve(None, homes.folder())
    connection.connect(address)
    return {"uri": address.display}


def _glyphs() -> Facts:
    from graceful.tasks.glyphs.archive import open_archive

    return {"sha256": open_archive().digest}


def _storage(uri: str) -> Facts:
    """Write, read and delete one object below a prefix."""
    import uuid

    from graceful.storage import objects

    bucket, prefix = objects.split_uri(uri)
    key = "/".join(part for part in (prefix.strip("/"), f"probe-{uuid.uuid4().hex}") if part)
    data = key.encode()
    stored = objects.StoredObject(bucket=bucket, key=key, size=len(data), etag="")
    objects.write_object(stored.uri, data)
    try:
        read = objects.read_object(stored.uri)
    finally:
        objects.remove([stored])
    if read != data:
        raise IntegrityError(f"{stored.uri}: wrote {len(data)} bytes, read {len(read)} others")
    return {"uri": uri, "probe": "written, read and deleted"}


PROBES: dict[str, Callable[..., Facts]] = {
    "torch": _torch,
    "deepspeed": _deepspeed,
    "ray": lambda: {"version": _version("ray")},
    "mlflow": lambda: {"version": _version("mlflow")},
    "registry": _registry,
    "glyphs": _glyphs,
    "storage": _storage,
}

if __name__ == "__main__":
    sys.exit(main())
