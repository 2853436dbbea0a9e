"""The names of variables; credentials and addresses in them without white space around, checked. Every process.

Secrets in files and in Kubernetes often end with a line break. Libraries put such a value into a header of HTTP and
then repeat the whole header in their error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from urllib.parse import urlsplit

from graceful.errors import SpecError

HOME_VARIABLE = "GRACEFUL_HOME"
"""Names the folder of runs, caches and the default registry."""
STORAGE_VARIABLE = "GRACEFUL_STORAGE"
"""Names the place in a bucket where runs have copies."""
RUN_SPEC_VARIABLE = "GRACEFUL_RUN_SPEC"
"""Names the file with the resolved spec, on a cluster and in the folder of a job; without it a program reads stdin."""
OUTCOME_VARIABLE = "GRACEFUL_OUTCOME"
"""Names a file for the outcome, where a program of ours started the program on its own machine."""
RESUMES_VARIABLE = "GRACEFUL_RESUMES"
"""How often people have resumed the run; what one attempt gave up on, the next of the same count does not try."""
RANK_VARIABLE = "GRACEFUL_RANK"
"""What a training process takes of a cluster's nodes, as a JSON mapping of Ray's resources; without it one CPU."""
WORKERS_VARIABLE = "GRACEFUL_WORKERS"
"""On how many training processes a run goes on, in place of train.num_workers: the run stays the same one."""
PROFILE_VARIABLE = "GRACEFUL_PROFILE"
"""1: the first worker writes a trace of torch's profiler."""
FIRING_VARIABLE = "GRACEFUL_FIRING"
"""Holds a firing's Job name: one per firing, the same for its retries, which so resume the run."""
WORKING_DIRECTORY_VARIABLE = "GRACEFUL_WORKING_DIRECTORY"
"""Names the driver's to the processes that Ray starts."""
LOG_LEVEL_VARIABLE = "GRACEFUL_LOG_LEVEL"
TRUST_CODE_VARIABLE = "GRACEFUL_TRUST_CODE"
"""Digests of recorded code that may run."""
WEBHOOK_VARIABLE = "GRACEFUL_WEBHOOK"
WEBHOOK_SECRET_VARIABLE = "GRACEFUL_WEBHOOK_SECRET"
CONTEXT_VARIABLE = "GRACEFUL_CONTEXT"
"""Names the context of a kubeconfig."""
INDEX_ADDRESS_VARIABLE = "GRACEFUL_INDEX_URL"
"""Holds the address of the database of an index, which may contain a password and is therefore no option."""
CACHE_GB_VARIABLE = "GRACEFUL_CACHE_GB"
SHARD_CACHE_GB_VARIABLE = "GRACEFUL_SHARD_CACHE_GB"
"""What blocks of shards in buckets may take on this machine."""
REGISTRY_VARIABLE = "MLFLOW_TRACKING_URI"
REGISTRY_USER_VARIABLE = "MLFLOW_TRACKING_USERNAME"
REGISTRY_PASSWORD_VARIABLE = "MLFLOW_TRACKING_PASSWORD"
REGISTRY_TOKEN_VARIABLE = "MLFLOW_TRACKING_TOKEN"
RAY_TOKEN_VARIABLE = "RAY_AUTH_TOKEN"
RAY_TOKEN_FILE_VARIABLE = "RAY_AUTH_TOKEN_PATH"
RAY_WATCHER_VARIABLE = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""0: Ray does not look for machines that are about to be taken away."""
MLFLOW_SETTINGS: Mapping[str, str] = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
"""Under which MLflow reports no usage and unpickles nothing."""
RAY_SETTINGS: Mapping[str, str] = {"RAY_USAGE_STATS_ENABLED": "0"}
"""Under which Ray reports no usage."""
CPU_SETTINGS: Mapping[str, str] = {"DS_ACCELERATOR": "cpu"}
"""Settings where there is no GPU: DeepSpeed's own detection warns and probes for compilers."""
PREFIXES = ("AWS_", "MLFLOW_", "GRACEFUL_", "RAY_AUTH_")


def clean(environment: MutableMapping[str, str] = os.environ) -> None:
    """Strip the values of the variables that graceful and its libraries read."""
    for name, value in list(environment.items()):
        if name.startswith(PREFIXES) and value != value.strip():
            environment[name] = value.strip()


def usable_cpus(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many CPUs this process may keep busy: those that it is allowed, shared with the other training
    processes on its machine. A pod's limit is not a set of cores but a quota of its control group.

    Args:
        quota: Where the control group says it, microseconds of CPU and of the period, or `max`.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        granted, period = quota.read_text(encoding="utf-8").split()
        allowed = min(allowed, max(round(int(granted) / int(period)), 1))
    except (OSError, ValueError):  # no limit, or no such control group
        pass
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(allowed // (int(beside) if beside.isdigit() and int(beside) else 1), 1)


def header_value(text: str, *, what: str) -> str:
    """Return a text that can be sent in a header of HTTP, without white space around.

    Raises:
        SpecError: It holds a line break or another character that is not printable ASCII; it is not repeated.
    """
    text = text.strip()
    if not (text.isascii() and text.isprintable()):
        raise SpecError(
            f"{what}: holds a line break or another character that a header of HTTP may not have; write it again (its"
            " value is not shown)"
        )
    return text


def require_readable(url: str, *, what: str) -> None:
    """Refuse an address whose host libraries would not find, because their errors repeat parts of its password.

    Args:
        url: With or without user and password.
        what: Whose address, for the message.

    Raises:
        SpecError: Host or port cannot be read, or user and password are not written as an address needs them.
    """
    from graceful import redact  # its patterns take milliseconds to compile, and most commands read no address

    problem = ""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        problem = "its host or port cannot be read"
    else:
        if redact.holds_password(url) and "@" not in parts.netloc:
            problem = "its user or password holds / ? or #, which an address writes as %2F %3F %23"
    if problem:
        raise SpecError(f"{what} {redact.address(url)}: {problem}; correct it")
    redact.remember_password(url)
