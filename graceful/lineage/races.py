"""Writes to MLflow that lost a race against another writer: recognised and repeated. Driver and client.

MLflow reads a row and writes it in a second statement. Where another writer was between the two, the database refuses
the second one and MLflow reports a bad request, although nothing is wrong with it: repeated, it reads the row as it is
now and gets one of the usual answers (done, already exists, does not exist). The same holds for a transaction that a
database ended because of a deadlock, and for a version number that others took every time.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from graceful.patience import Patience

PATIENCE = Patience(tries=8, first=0.05, longest=0.4)
"""Tries of one write; each loss means that another writer of the same row got through."""
_RACE_ERRORS = {
    "BAD_REQUEST": re.compile(
        r"statement on table '\w+' expected to (update|delete) \d+ row\(s\); \d+ (was|were) matched"
        r"|UNIQUE constraint failed|duplicate key value violates unique constraint|Duplicate entry"
        r"|FOREIGN KEY constraint failed|violates foreign key constraint|a foreign key constraint fails"
    ),
    "TEMPORARILY_UNAVAILABLE": re.compile(r"deadlock detected|Deadlock found when trying to get lock"),
    "INTERNAL_ERROR": re.compile(r"Model Version creation error .* Giving up after \d+ attempts"),
}


def lost_race(error: Exception) -> bool:
    """Return whether an error of MLflow says that another writer changed the same rows meanwhile."""
    pattern = _RACE_ERRORS.get(str(getattr(error, "error_code", "")))
    return pattern is not None and pattern.search(str(error)) is not None


class Client:
    """MLflow's client, each call repeated while it loses a race; everything else is as MLflow does it.

    Args:
        client: An `mlflow.tracking.MlflowClient`.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        if not callable(attribute):
            return attribute
        from mlflow.exceptions import MlflowException

        @functools.wraps(attribute)
        def call(*arguments: Any, **keywords: Any) -> Any:
            write = functools.partial(attribute, *arguments, **keywords)
            return PATIENCE.repeat(write, failure=MlflowException, may_pass=lost_race)

        return call
