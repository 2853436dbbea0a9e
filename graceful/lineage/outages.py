"""Outages of the registry, distinguished from its refusals, and waited for. Driver and client.

A run of hours must survive a registry that is started again, so a call that fails for want of an answer is repeated
for as long as a bucket's is. A registry that has not answered this process yet is reported at once, because its address
is probably wrong; a job on a cluster waits for it as well, because no person is there to start it again.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

from graceful import patience
from graceful.environment import RUN_SPEC_VARIABLE
from graceful.patience import Patience

PATIENCE = Patience(tries=math.inf, seconds=180.0, first=0.5)
"""Limits of waiting for a registry that does not answer; the same as for a bucket."""
_SIGNS = re.compile(
    r"Max retries exceeded|Connection (refused|aborted|reset)|RemoteDisconnected|[Tt]imed out|[Tt]imeout expired"
    r"|too many 50[0234] error|error code 50[234]|server closed the connection|could not connect to server"
    r"|connection to server .* failed|(the database system|server) is (starting up|shutting down)|Lost connection to"
    r"|Can't connect to .* server|terminating connection due to"
)
_PERMANENT = re.compile(r"SSLError|CERTIFICATE|authentication failed|does not exist|header value")
T = TypeVar("T")


def may_pass(error: BaseException) -> bool:
    """Return whether an error says that the registry gave no answer, and not that it refused."""
    text = str(error)
    return _SIGNS.search(text) is not None and _PERMANENT.search(text) is None


def ridden_out(call: Callable[[], T], *, failures: tuple[type[Exception], ...], display: str) -> T:
    """Return what a call returns, repeated while the registry does not answer.

    Args:
        call: May be made again, also where an answer was lost after the registry had acted.
        failures: What it raises.
        display: The registry, for people.

    Raises:
        Exception: The last failure, one of `failures`.
    """
    waits = False

    def passing(error: Exception) -> bool:
        nonlocal waits
        if not isinstance(error, failures) or not may_pass(error):
            return False
        if not waits:
            waits = True
            patience.report_waiting(f"registry {display} does not answer; waiting up to {PATIENCE.seconds:.0f} s")
        return True

    result = PATIENCE.repeat(call, failure=Exception, may_pass=passing)
    if waits:
        patience.report_waiting("")
    return result


def is_job() -> bool:
    """Return whether this is a job on a cluster, where no person waits at a terminal."""
    return RUN_SPEC_VARIABLE in os.environ


class Patient:
    """A client of MLflow whose calls are repeated while the registry does not answer.

    Args:
        client: The client; it has answered once.
        display: The registry, for people.
    """

    def __init__(self, client: Any, display: str) -> None:
        self._client, self._display = client, display

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        if not callable(attribute):
            return attribute

        def call(*arguments: Any, **keywords: Any) -> Any:
            from mlflow.exceptions import MlflowException

            return ridden_out(
                lambda: attribute(*arguments, **keywords), failures=(MlflowException, OSError), display=self._display
            )

        return call
