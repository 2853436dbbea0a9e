"""Transport of the code of a user's task: a file travels with the job, a folder through a bucket. Client."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from graceful import addresses, documents, packing
from graceful.cli import bucket
from graceful.cli import output as out
from graceful.errors import SpecError
from graceful.launch.base import Profile
from graceful.launch.job import JobSpec
from graceful.spec import RefreshSpec

FACT = "code"
"""What is recorded with a job: the address of the bundle that its task is in."""
LARGEST = 2**24
"""Bytes of a task's file."""
MARGIN = 1000
"""Bytes that a spec may grow by when it is rewritten for a cluster."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """The code of a user's task that travels with a job.

    Attributes:
        content: What the config hash covers besides the spec: the file's text, or the digest of a folder.
        text: Of the file that lies beside the document; None: there is none.
        address: The address of the bundle in the bucket; empty: none is needed.
    """

    content: str = ""
    text: str | None = None
    address: str = ""


def code_of(resolved: RefreshSpec, target_profile: Profile) -> Code:
    """Decide how the task's code travels; nothing is sent. What lies in a bucket already travels by its address.

    Args:
        resolved: What is to run.
        target_profile: Where.

    Raises:
        SpecError: It cannot be read or packed, or cannot travel to that backend.
    """
    file = getattr(resolved.task, "file", None)
    if file is None or addresses.is_remote(file):
        return Code()
    problem = "is a folder"
    if not Path(file).is_dir():
        text = _text(file)
        size = len(text.encode()) + len(json.dumps(resolved.dump(), indent=1).encode()) + MARGIN
        largest = target_profile.largest_files
        if largest is None or size <= largest:
            return Code(content=text, text=text)
        problem = f"and spec hold {size} bytes, {target_profile.carrier} at most {largest}"
    if target_profile.is_here:
        return Code(content=_digest(Path(file)))
    if target_profile.bucket is None:
        raise SpecError(f"task.file {file}: {problem}{target_profile.bucket_remedy}")
    digest = _digest(Path(file))
    return Code(content=digest, address=packing.address(target_profile.bucket, digest))


def send(resolved: RefreshSpec, job: JobSpec) -> None:
    """Put the code that a job reads into its bucket; nothing, if it reads none there or it is there already.

    Args:
        resolved: What the job was made of.
        job: As planned.

    Raises:
        SpecError: The code has changed since, or cannot be packed.
        InfrastructureError: The bucket cannot be reached or refused.
    """
    address = job.labels.get(FACT)
    if address is None:
        return
    path, storage = Path(getattr(resolved.task, "file", "")), address.rpartition(f"/{packing.FOLDER}/")[0]
    _require_planned(packing.address(storage, _digest(path)), address)
    bundle = bucket.ship(path, storage)
    _require_planned(bundle.uri, address)
    out.talk(f"code: {address}, {bundle.size} bytes {'uploaded' if bundle.uploaded else 'were there already'}")


def _digest(path: Path) -> str:
    return hashlib.sha256(packing.pack(path)).hexdigest()


def _require_planned(actual: str, planned: str) -> None:
    if actual != planned:
        raise SpecError(f"task.file: its code changed while it was planned, {planned} is out of date; submit again")


def _text(file: str) -> str:
    try:
        return documents.read_text(Path(file), largest=LARGEST)
    except (OSError, ValueError) as e:
        raise SpecError(f"task.file {file}: cannot be read ({e}); it travels with the job") from e
