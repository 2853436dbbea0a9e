"""The versions of a family as a list, read from the registry without opening their records. Driver and client."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graceful.lineage import schema


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One line of `versions`.

    Attributes:
        version: Number in the registry.
        name: Name of the version.
        model_id: Its identity; empty where a version was not registered by graceful, which tags every version.
        gate: passed, held, waived, retired, or empty.
        aliases: E.g. champion, previous.
        nfr_max_pct: Worst negative flip rate in percent, as text; empty for a first link.
        created: Milliseconds since 1970.
    """

    version: int
    name: str
    model_id: str
    gate: str
    aliases: tuple[str, ...]
    nfr_max_pct: str
    created: int


def from_mlflow(model: str, listed: Any, aliases: Mapping[str, int]) -> Listed:
    """Return the line of one version from its MLflow entity."""
    number, source = int(listed.version), str(listed.source).removeprefix("models:/")
    return Listed(
        version=number,
        name=listed.tags.get(schema.TAG_REFRESH, "").removeprefix(f"{model}-"),
        model_id=source if registered_by_graceful(listed) else "",
        gate=listed.tags.get(schema.TAG_GATE, ""),
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == number)),
        nfr_max_pct=listed.tags.get(schema.TAG_NFR_MAX, ""),
        created=int(listed.creation_timestamp),
    )


def registered_by_graceful(listed: Any) -> bool:
    """Return whether graceful registered a version; others may list theirs under the same model."""
    source = str(listed.source).removeprefix("models:/")
    tagged = any(key in listed.tags for key in (schema.TAG_REFRESH, schema.TAG_DIGEST, schema.TAG_PARENTS))
    return re.match(schema.NODE_ID, source) is not None and tagged
