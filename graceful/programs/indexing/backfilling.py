"""`graceful backfill`: run, pause, status, roll back. Driver."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graceful import addresses
from graceful.errors import DataError, SpecError, one_line
from graceful.index import Index, backfill
from graceful.index.backfill import Progress
from graceful.index.backfill_work import Settings
from graceful.index.order import ORDERS
from graceful.index.places import Bucket
from graceful.programs.indexing import reembed
from graceful.programs.indexing.program import Done
from graceful.programs.indexing.source import Source
from graceful.storage import read_bytes, read_object

EVERY = 5.0
"""Seconds between two lines of progress."""
RECENT = 20
"""Commits from which the present rate is computed."""


@dataclass(frozen=True, kw_only=True)
class Action:
    """One thing to do with a backfill, as the command line says it.

    Attributes:
        action: plan, run, pause, status or rollback.
        index: Folder of the index, or s3://bucket/prefix.
        source: The new model.
        order: random, distance, uncertainty or traffic.
        seed: The seed of the order.
        batch: Vectors of one commit.
        rate: Most vectors a second; None: as fast as it goes.
        stop_at: Share at which it stops.
        shard: Number of this worker from 0, and of how many.
        traffic: File that says how often each id was found.
        sample: Of plan, how many ids are embedded.
        price: Of plan, per hour of the machines of a profile.
        currency: The currency of the price.
        reason: Why.
        author: Who.
        run_id: The id of the job under which copies of its log are kept; empty: it is none.
    """

    action: str
    index: str
    source: Source = field(default_factory=Source)
    order: str = "random"
    seed: int = 0
    batch: int = 1024
    rate: float | None = None
    stop_at: float = 1.0
    shard: tuple[int, int] = (0, 1)
    traffic: str | None = None
    sample: int = 1000
    price: float | None = None
    currency: str = ""
    reason: str = ""
    author: str = ""
    run_id: str = ""

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Action:
        """Return what the command line sent."""
        parts = dict(document)
        parts["source"] = Source(**parts.get("source", {}))
        first, count = parts.get("shard", (0, 1))
        return cls(**{**parts, "shard": (first, count)})


def act(action: Action, home: Path) -> Done:
    """Do one thing with the backfill of an index.

    Raises:
        SpecError, DataError: What was asked is not possible, in one line.
        InfrastructureError: Another process is at it, or the index cannot be read or written.
    """
    return _ACTIONS[action.action](action, home)


def traffic_of(path: str | None) -> dict[str, float] | None:
    """Return how often each id was found, from a JSON file {"id": count}.

    Raises:
        DataError: It is no such file.
    """
    if path is None:
        return None
    data = read_object(path) if addresses.is_remote(path) else read_bytes(path)
    text = data.decode("utf-8", errors="replace")
    try:
        counts = {str(name): float(count) for name, count in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as e:
        raise DataError(f"{path}: must be JSON that gives each id how often it was found ({one_line(e):.100})") from e
    bad = next((name for name, count in counts.items() if not math.isfinite(count)), None)
    if bad is not None:
        raise DataError(f"{path}: {bad[:60]!a} has no finite count")
    return counts


def _run(action: Action, home: Path) -> Done:
    index = Index.open(action.index)
    order = next((item for item in ORDERS if item == action.order), None)
    if order is None:
        raise SpecError(f"--order {action.order!r}: must be one of {', '.join(ORDERS)}")
    settings = Settings(
        order=order,
        seed=action.seed,
        batch=action.batch,
        rate=action.rate,
        stop_at=action.stop_at,
        shard=action.shard,
        traffic=traffic_of(action.traffic),
        reason=action.reason,
        author=action.author,
    )
    if order == "traffic" and settings.traffic is None:
        raise SpecError("--order traffic: needs how often each id was found; write --traffic FILE")
    spoken = [0.0]

    def tell(row: Mapping[str, object]) -> None:
        if time.monotonic() - spoken[0] > EVERY:
            spoken[0] = time.monotonic()
            sys.stderr.write(" ".join(["event=step", *(f"{key}={value}" for key, value in row.items())]) + "\n")

    return _done(index, backfill.run(index, reembed.of(action.source, home), settings, tell=tell))


def _done(index: Index, now: Progress) -> Done:
    says = {
        "moved": f"the index serves {now.serving}",
        "paused": "paused; `graceful backfill run` goes on",
        "stopped": f"stopped; queries of {now.serving} and {now.to} are both needed",
        "running": "running",
    }[now.state]
    line = f"{now.done} of {now.total} vectors are of {now.to} ({now.fraction:.1%}), {says}"
    return Done(document={"index": str(index.place), **now.document()}, lines={str(index.place): line})


def _pause(action: Action, home: Path) -> Done:
    index = Index.open(action.index)
    running = backfill.is_running(index)
    backfill.pause(index)
    line = "it stops after its present batch" if running else "nothing runs here; a run elsewhere stops after its batch"
    return Done(document={"index": str(index.place), "running": running}, lines={str(index.place): line})


def _status(action: Action, home: Path) -> Done:
    index = Index.open(action.index)
    now = backfill.progress(index)
    if now is None:
        head = index.head()
        document: dict[str, Any] = {"index": str(index.place), "state": "none", "serving": head.serving}
        return Done(document=document, lines={str(index.place): f"no backfill; the index serves {head.serving}"})
    done = _done(index, now)
    elsewhere = isinstance(index.place, Bucket) and now.state == "stopped"
    here = {"here": "nothing runs on this machine; `graceful list --on NAME` shows jobs elsewhere"} if elsewhere else {}
    rate = _rate(index, now.to)
    left = now.total - now.done
    eta = None if rate is None or not left else round(left / rate, 1)
    return Done(
        document={**done.document, "vectors_per_second": rate, "seconds_left": eta},
        lines={
            **done.lines,
            **here,
            **({} if eta is None else {"left": f"{eta:.0f} s at {rate:.1f} vectors a second"}),
        },
    )


def _rate(index: Index, to: str) -> float | None:
    """Return vectors a second over the latest commits of the backfill; None: fewer than two."""
    numbers = index.log.numbers()[-RECENT:]
    commits = [item for item in map(index.log.read, numbers) if item.action == "backfill"]
    if len(commits) < 2 or commits[-1].time <= commits[0].time:
        return None
    done = commits[-1].counts.get(to, 0) - commits[0].counts.get(to, 0)
    return done / (commits[-1].time - commits[0].time) if done > 0 else None


def _rollback(action: Action, home: Path) -> Done:
    index = Index.open(action.index)
    head = backfill.rollback(index, reason=action.reason, author=action.author)
    counts = ", ".join(f"{count} of {name}" for name, count in head.counts.items())
    document = {
        "index": str(index.place),
        "serving": head.serving,
        "counts": dict(head.counts),
        "snapshot": head.number,
    }
    return Done(document=document, lines={str(index.place): f"serves {head.serving} again: {counts}"})


def _plan(action: Action, home: Path) -> Done:
    from graceful.programs.indexing import backfill_plan

    index = Index.open(action.index)
    plan = backfill_plan.planned(
        index,
        reembed.of(action.source, home),
        Settings(seed=action.seed, rate=action.rate, traffic=traffic_of(action.traffic)),
        sample=action.sample,
        price=action.price,
    )
    document = {"index": str(index.place), **plan, "currency": action.currency}
    return Done(document=document, lines=backfill_plan.lines(document))


_ACTIONS: Mapping[str, Callable[[Action, Path], Done]] = {
    "plan": _plan,
    "run": _run,
    "pause": _pause,
    "status": _status,
    "rollback": _rollback,
}
