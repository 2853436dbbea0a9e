"""Errors that another attempt would only make again, remembered so that it ends at once. Driver, on a cluster.

KubeRay starts a failed job again on new machines, whatever it failed of, and its retries cannot be called off from
inside. So an error that needs a person is written into the run's folder: the next attempt repeats it in seconds instead
of training until it comes again. `graceful resume` starts afresh, because a person asked for it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from graceful import errors
from graceful.environment import RESUMES_VARIABLE
from graceful.errors import CollapsedError, DataError, GracefulError, NonFiniteError, SpecError, StorageError
from graceful.programs.run import Run
from graceful.spec import RefreshSpec
from graceful.storage import sha256_json, write_json

FILE = "hopeless.json"
VALID_SECONDS = 3600.0
"""Retries of a cluster come within minutes; who submits the same spec again later has mended something."""
PASSING = "passing"
"""Fact of an error that may pass although its class says that a person is needed."""
KINDS = (SpecError, DataError, NonFiniteError, CollapsedError)
"""Wrong spec, wrong data, numbers that the same seeds would give again."""


@contextmanager
def once(run: Run, *, retried: bool) -> Iterator[None]:
    """Do work whose errors are remembered in the run's folder, where somebody retries it."""
    if not retried:
        yield
        return
    before = recall(run)
    if before is not None:
        raise before
    try:
        yield
    except GracefulError as e:
        remember(run, e)
        raise


def remember(run: Run, error: GracefulError) -> None:
    """Write an error down, if another attempt would make it again; trouble with writing must not hide the error."""
    if not isinstance(error, KINDS) or error.facts.get(PASSING):
        return
    document = {**_attempt(run.spec), "at": time.time(), "error": type(error).__name__, "message": error.message}
    with suppress(StorageError):
        write_json(run.folder / FILE, document)
        run.mirror.save(run.folder, only=(FILE,))


def recall(run: Run) -> GracefulError | None:
    """The error that ended an earlier attempt at the very same work, to be raised again.

    Raises:
        StorageError: The bucket is not reachable.
    """
    path = run.folder / FILE
    run.mirror.restore_file(path)
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        known = json.loads(path.read_text(encoding="utf-8"))
        kind = getattr(errors, str(known["error"]), None)
        same = {key: known[key] for key in _attempt(run.spec)} == _attempt(run.spec)
        if kind in KINDS and same and time.time() - float(known["at"]) < VALID_SECONDS:
            where = run.mirror.shown(path)
            found: GracefulError = kind(f"{known['message']} (an earlier attempt said so: {where})")
            return found
    return None


def _attempt(spec: RefreshSpec) -> dict[str, str]:
    tuned = "" if spec.tune is None else sha256_json(spec.tune.model_dump(mode="json"))
    return {"spec": spec.digest(), "tune": tuned, "resumes": os.environ.get(RESUMES_VARIABLE, "0")}
