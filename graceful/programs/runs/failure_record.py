"""Record of errors that a retry cannot fix, so that the next attempt ends at once. Driver, on a cluster.

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
from pathlib import Path

from graceful import errors
from graceful.environment import RESUMES_VARIABLE
from graceful.errors import CollapsedError, DataError, GracefulError, NonFiniteError, SpecError, StorageError
from graceful.programs.runs.run import Run
from graceful.spec import RefreshSpec
from graceful.storage import sha256_json, write_json

FILE = "failure.json"
OLD_FILE = "hopeless.json"
"""Name of the file in runs of earlier releases, which is read where there is no other."""
VALID_SECONDS = 3600.0
"""Retries of a cluster come within minutes; who submits the same spec again later has repaired something."""
PASSING = "passing"
"""Fact of an error that may pass although its class says that a person is needed."""
KINDS = (SpecError, DataError, NonFiniteError, CollapsedError)
"""Wrong spec, wrong data, numbers that the same seeds would give again."""


@contextmanager
def once(run: Run, *, retried: bool) -> Iterator[None]:
    """Do work whose errors are recorded in the run's folder, if the cluster retries it."""
    if not retried:
        yield
        return
    error = recall(run)
    if error is not None:
        raise error
    try:
        yield
    except GracefulError as e:
        remember(run, e)
        raise


def remember(run: Run, error: GracefulError) -> None:
    """Record an error that another attempt would make again; a failure to write must not hide the error."""
    if not isinstance(error, KINDS) or error.facts.get(PASSING):
        return
    document = {**_attempt(run.spec), "at": time.time(), "error": type(error).__name__, "message": error.message}
    with suppress(StorageError):
        write_json(run.folder / FILE, document)
        run.mirror.save(run.folder, only=(FILE,))


def recall(run: Run) -> GracefulError | None:
    """Return the error that ended an earlier attempt at the very same work, to be raised again; None: there is none.

    Raises:
        StorageError: The bucket is not reachable.
    """
    for path in (run.folder / FILE, run.folder / OLD_FILE):
        run.mirror.restore_file(path)
        if path.exists():
            return _read(run, path)
    return None


def _read(run: Run, path: Path) -> GracefulError | None:
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        failure = json.loads(path.read_text(encoding="utf-8"))
        kind = getattr(errors, str(failure["error"]), None)
        same = {key: failure[key] for key in _attempt(run.spec)} == _attempt(run.spec)
        if kind in KINDS and same and time.time() - float(failure["at"]) < VALID_SECONDS:
            where = run.mirror.display_path(path)
            error: GracefulError = kind(f"{failure['message']} (an earlier attempt said so: {where})")
            return error
    return None


def _attempt(spec: RefreshSpec) -> dict[str, str]:
    tuned = "" if spec.tune is None else sha256_json(spec.tune.model_dump(mode="json"))
    return {"spec": spec.digest(), "tune": tuned, "resumes": os.environ.get(RESUMES_VARIABLE, "0")}
