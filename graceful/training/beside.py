"""Work that a thread does while training goes on, one piece at a time. Runs in workers without Ray."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from graceful.errors import GracefulError

_LOG = logging.getLogger(__name__)


class Beside:
    """A thread that does one piece of work; the next piece, and the end of the `with`, wait for it.

    What it raised is raised there. Where training ends with an error of its own, that one is raised and the other
    logged.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="beside")
        self._work: Future[None] | None = None

    def begin(self, work: Callable[[], None]) -> None:
        """Begin a piece of work once the one before is done; raises what that one raised."""
        self.wait()
        self._work = self._thread.submit(work)

    def wait(self) -> None:
        """Wait for the work that was begun; raises what it raised, once."""
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def __enter__(self) -> Beside:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except (GracefulError, OSError) as e:
            if error is None:
                raise
            _LOG.warning("%s", e)
        finally:
            self._thread.shutdown()
