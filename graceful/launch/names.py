"""Names, labels and annotations of what we create on a cluster; pure functions. Runs on the client."""

from __future__ import annotations

import hashlib
import re

PREFIX = "graceful.dev/"
RUN_ID = f"{PREFIX}run-id"
"""Label (shortened where it is too long) and annotation (in full)."""
ROLE = f"{PREFIX}role"
CONFIG_HASH = f"{PREFIX}config-hash"
"""Annotation: SHA-256 of what determines the result; tells two jobs of one name apart."""
ENGINE = f"{PREFIX}engine"
"""Annotation: what holds the optimiser's state."""
SPOT = f"{PREFIX}spot"
"""Label of pods whose machines may vanish at short notice."""
MANAGED_BY = ("app.kubernetes.io/managed-by", "graceful")
QUEUE = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"
TOPOLOGY = "kueue.x-k8s.io/podset-"
"""Prefix of the annotations that say how near each other pods are placed."""
SELECTOR = "=".join(MANAGED_BY)
"""Selects everything of ours."""

LONGEST = 47
"""Characters of a RayJob's name: KubeRay appends to it and a label ends at 63."""
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_HASH = 8


def job_name(run_id: str) -> str:
    """Name of the RayJob that computes a run: the run id itself where Kubernetes allows it.

    Anything else is shortened and made unique by a hash of the whole id, so that two ids never share a job.
    """
    return run_id if is_job_name(run_id) else _hashed(run_id, longest=LONGEST)


def is_job_name(text: str) -> bool:
    """Return whether KubeRay accepts a name for a RayJob: DNS-1035, at most 47 characters."""
    return len(text) <= LONGEST and DNS_1035.fullmatch(text) is not None


def document_name(job: str, text: str) -> str:
    """Return the name of the ConfigMap of a job's document; it follows from the content, which then cannot change."""
    return f"{job}-{_digest(text)}"


def label_value(text: str) -> str:
    """Return the text itself where it may be a label's value, else shortened and made unique by a hash."""
    return text if _LABEL.fullmatch(text) else _hashed(text, longest=63)


def _hashed(text: str, *, longest: int) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    started = plain if plain[:1].isalpha() else f"r-{plain}"
    return f"{started[: longest - _HASH - 1].strip('-')}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH]
