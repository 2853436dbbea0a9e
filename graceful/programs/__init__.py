"""What a job runs: train, evaluate, refresh. `python -m graceful.programs NAME` reads a resolved spec from stdin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from graceful import homes, locks, storage
from graceful.errors import SpecError
from graceful.spec import RefreshSpec


def home_of(spec: RefreshSpec) -> Path:
    """Return the folder of runs, caches and the default registry: the spec's, else $GRACEFUL_HOME, else .graceful
    here."""
    return homes.folder(spec.home).resolve() if spec.home else default_home()


def default_home() -> Path:
    """Return $GRACEFUL_HOME, else .graceful here."""
    return homes.folder().resolve()


@contextmanager
def exclusive(run_dir: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the run's lock: two processes never work on one run.

    Args:
        run_dir: Its folder; made if missing.
        wait: Until another process lets go, rather than refuse.

    Raises:
        SpecError: Another process holds it.
        StorageError: The folder cannot be made or written.
    """
    with ExitStack() as held:
        with storage.guarded(run_dir, "write"):
            try:
                held.enter_context(locks.exclusive(run_dir / "lock", seconds=None if wait else 0.0))
            except BlockingIOError as e:
                message = f"run {run_dir.name} is already being worked on here; wait for it or stop it"
                raise SpecError(message, {"passing": True}) from e
        yield
