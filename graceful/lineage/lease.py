"""One writer of a family's aliases at a time, wherever the writers run. Driver and client.

A file lock keeps processes of one machine apart; it is all that a sqlite file needs. Writers of a server or of a shared
database may run anywhere: they also take a lease, an empty registered model whose name the database lets exist once.

    take      create `graceful-lock-MODEL` with our token; the name is unique, so one of many wins
    give back rename it to a name made of our token, then delete that
    take over if it carried the same token for `LEASE_SECONDS` of our own clock, rename it to a name made of that token

Renaming to a name that belongs to one token, never deleting by the shared name, is what makes repeated requests
harmless: a request of ours that is repeated after the answer was lost cannot remove the lease of the next writer.
A writer that was stopped for longer than a lease finds out at `check` before it moves an alias, or at `confirm` after.
"""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from graceful.errors import RegistryError, SpecError
from graceful.lineage import connection, races, schema
from graceful.lineage.registry import Registry
from graceful.patience import Patience
from graceful.sections import LOCKS, unreserved

PREFIX = LOCKS
TAG_TOKEN = "graceful_token"
TAG_BEAT = "graceful_beat"
LEASE_SECONDS = 120.0
WAIT_SECONDS = 600.0
"""Seconds to wait for a lease that goes from writer to writer; one that stays with a writer is taken over long
before."""
PATIENCE = Patience(first=0.2, growth=1.5, longest=4.0)
"""Between looks of a waiting writer; sixty that look every moment keep the server from answering the holder."""
LOOKS = 5
"""How often an entry must look like a model of a user before it is taken for one."""
LOOK_PAUSE = 0.2


class LeaseLostError(RegistryError):
    """Another writer has the lease now, or may take it any moment."""


@dataclass(kw_only=True)
class Hold:
    """The right to move aliases until a lease ends.

    Attributes:
        model: Model family.
        until: Monotonic time after which to move nothing any more; None: never, a file lock ends with its process.
        renew: Tells waiting writers that this one is alive; returns the new `until`.
        is_valid: Returns whether the registry still names this writer; None: a file lock cannot be lost.
    """

    model: str
    until: float | None = None
    renew: Callable[[], float] | None = None
    is_valid: Callable[[], bool] | None = None

    @property
    def expiring(self) -> bool:
        """Return whether others may take over by now, or soon."""
        return self.until is not None and time.monotonic() >= self.until

    @property
    def valid(self) -> bool:
        """Return whether no other writer has had the lease until now."""
        return self.is_valid is None or self.is_valid()

    def check(self) -> None:
        """Call it before each alias is moved.

        Raises:
            LeaseLostError: The lease may have gone to another writer meanwhile.
        """
        if self.expiring:
            raise LeaseLostError(
                f"{self.model}: moving an alias took longer than the lease of {LEASE_SECONDS:g} s; the registry is slow"
                " or this machine was asleep, run the same command again"
            )

    def confirm(self) -> None:
        """Call it after the last alias was moved, before the event is closed.

        Raises:
            LeaseLostError: The lease went to another writer before, so what was moved may have to be put back.
        """
        if not self.valid:
            raise LeaseLostError(f"{self.model}: another writer took the lease before this one was done; run it again")

    def extend(self) -> None:
        """Hold it longer; call it now and then during long work.

        Raises:
            LeaseLostError: The lease may have gone to another writer meanwhile.
        """
        self.check()
        if self.renew is not None and self.until is not None and self.until - time.monotonic() < LEASE_SECONDS / 4:
            self.until = self.renew()


@contextmanager
def writer(registry: Registry, model: str, *, lease_seconds: float | None = None) -> Iterator[Hold]:
    """Hold the writer's lock of one family.

    Args:
        registry: Where.
        model: Model family.
        lease_seconds: After which others may take over; None: `LEASE_SECONDS`.

    Raises:
        SpecError: The name is reserved.
        RegistryError: Another writer held it all the time.
    """
    try:
        unreserved(model)
    except ValueError as e:
        raise SpecError(f"model {model}: {e}") from e
    seconds = LEASE_SECONDS if lease_seconds is None else lease_seconds
    with connection.exclusive(registry.address.lock, seconds=WAIT_SECONDS):
        if registry.address.sqlite:
            yield Hold(model=model)
            return
        token = uuid.uuid4().hex
        _take(registry, model, token, seconds)

        def renew() -> float:
            start = time.monotonic()
            if is_valid():
                registry.point(registry.client.set_registered_model_tag, PREFIX + model, TAG_BEAT, f"{start:.3f}")
            hold.confirm()
            return start + seconds / 2

        def is_valid() -> bool:
            return _holder(registry, model) == token

        hold = Hold(model=model, until=time.monotonic() + seconds / 2, renew=renew, is_valid=is_valid)
        try:
            yield hold
        finally:
            _give_back(registry, model, token, expiring=hold.expiring)


def leftovers(registry: Registry, model: str) -> list[str]:
    """Return the names of leases that another writer took over from a dead one."""
    leases = registry.client.search_registered_models(f"name LIKE '{PREFIX}{model}.%'")
    return [item.name for item in leases]


def _take(registry: Registry, model: str, token: str, seconds: float) -> None:
    started = time.monotonic()
    last_holder, last_change, looks = ("", ""), started, 0
    available = True
    while not (available and _created(registry, model, token)):
        holder, now = _holder_and_beat(registry, model), time.monotonic()
        available = not holder[0]
        if holder != last_holder:
            last_holder, last_change = holder, now
        if not available and now - last_change >= seconds:
            _evict(registry, model, holder[0])
            available = True
        elif now - started >= WAIT_SECONDS:
            raise RegistryError(
                f"{model}: other writers have been promoting for {WAIT_SECONDS:g} s; wait for them or stop them"
            )
        elif not available:
            looks += 1
            PATIENCE.pause(looks)


def _created(registry: Registry, model: str, token: str) -> bool:
    from mlflow.exceptions import MlflowException

    note = f"{model} is being promoted; this entry lasts for seconds and belongs to graceful"
    tags = {schema.TAG_KIND: "lock", TAG_TOKEN: token}
    try:
        registry.client.create_registered_model(PREFIX + model, tags=tags, description=note)
    except MlflowException as e:
        if e.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):  # there, or gone a moment later
            raise
        return _holder(registry, model) == token  # ours, if the answer to the first request was lost
    return True


def _holder(registry: Registry, model: str) -> str:
    """Return the token of the writer that holds the lease; empty: there is none."""
    lease = registry.point(registry.client.get_registered_model, PREFIX + model)
    return "" if lease is None else str(lease.tags.get(TAG_TOKEN, "unknown"))


def _holder_and_beat(registry: Registry, model: str) -> tuple[str, str]:
    """Return the holder's token, and the last sign of life it gave; two empty texts where there is no lease.

    MLflow reads an entry and its tags one after the other, so a lease that is renamed or deleted between the two looks
    like a model without tags. Only an entry that looks so several times is a user's model.

    Raises:
        RegistryError: The entry that has the lease's name is a user's model.
    """
    for _ in range(LOOKS):
        entry = registry.point(registry.client.get_registered_model, PREFIX + model)
        if entry is None:
            return "", ""
        if not entry.latest_versions and {schema.TAG_KIND, TAG_TOKEN} & {*entry.tags}:
            return entry.tags.get(TAG_TOKEN, "unknown"), entry.tags.get(TAG_BEAT, "")
        time.sleep(LOOK_PAUSE)
    raise RegistryError(
        f"registered model {PREFIX}{model}: is not a lock of graceful, but has the name of the one that {model} needs;"
        " rename it in MLflow, or delete it if it is not needed"
    )


def _evict(registry: Registry, model: str, token: str) -> None:
    """Take the lease away from a token; a repetition changes nothing."""
    from mlflow.exceptions import MlflowException

    try:
        registry.client.rename_registered_model(PREFIX + model, _evicted_name(model, token))
    except MlflowException as e:
        if not races.lost_race(e) and e.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
            raise


def _evicted_name(model: str, token: str) -> str:
    """Return the model name of one token, hashed where an edited token has characters that a name must not have."""
    plain = token if re.fullmatch(r"[\w-]{1,64}", token) else hashlib.sha256(token.encode()).hexdigest()
    return f"{PREFIX}{model}.{plain}"


def _give_back(registry: Registry, model: str, token: str, *, expiring: bool) -> None:
    """Give the lease back; one that cannot be given back is taken over later.

    The renamed entry of an expiring lease stays: a writer that is about to take it over must find the name in use.
    """
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):
        if _holder(registry, model) != token:  # lost: several writers may be trying to take it over
            return
        _evict(registry, model, token)
        if not expiring:
            registry.client.delete_registered_model(_evicted_name(model, token))
