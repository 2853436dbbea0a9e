"""The versions of a model in the registry: measurements between them, roles, a picture. Runs in the driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from graceful.errors import SpecError
from graceful.lineage import LineageRecord, Store
from graceful.lineage.drawing import family_png, family_svg
from graceful.lineage.family import Family, tree
from graceful.report import Measurement
from graceful.storage import write_bytes, write_text
from graceful.views.chain import COLUMNS, Judged, JudgedPair, chain_rows
from graceful.views.rendering import render

NEWEST = 25
"""Versions that the terminal and a picture show where nothing else is asked for."""
FORMS = (".svg", ".png", ".html", ".txt")


@dataclass(frozen=True, kw_only=True)
class Version:
    """One registered version.

    Attributes:
        record: What was recorded about it.
        aliases: What points at it: champion, previous, candidate.
    """

    record: LineageRecord
    aliases: tuple[str, ...]

    def judged(self) -> Judged:
        """Return its numbers for the table."""
        against = {
            edge.name: {
                **_measured(edge.metrics),
                "negative_flip_rate": Measurement(value=edge.value, lower=edge.lower, upper=edge.upper),
            }
            for edge in self.record.ancestors
        }
        outcome = " ".join([self.record.verdict, *(f"({alias})" for alias in self.aliases)])
        return Judged(name=self.record.name, outcome=outcome, alone=_measured(self.record.metrics), against=against)

    def pairs(self) -> list[JudgedPair]:
        """Return the galleries that it was judged to search, and the query models of its own index."""
        label = f"{self.record.model}-{self.record.name}"
        return [
            JudgedPair(
                query=label if edge.relation == "gallery" else edge.name,
                gallery=edge.name if edge.relation == "gallery" else label,
                measured=_measured(edge.metrics),
                outcome=edge.verdict,
            )
            for edge in self.record.edges
            if edge.relation != "ancestor"
        ]

    def document(self) -> dict[str, object]:
        """As JSON values."""
        return {**asdict(self.record), "aliases": list(self.aliases)}


def versions(store: Store, model: str, *, last: int | None = None) -> list[Version]:
    """Return every version of a model that graceful registered, oldest first, held ones too; see `unregistered_note`
    for others.

    Args:
        store: The registry.
        model: Model family.
        last: Only so many of the newest.

    Raises:
        SpecError: The registry has no such model.
        RegistryError: It is unreachable, or a registration was never finished.
    """
    listed = store.versions(model)
    if not listed:
        raise SpecError(f"model {model}: registry {store.display_uri} has no version of it; run `graceful refresh`")
    registered = [item for item in (listed if last is None else listed[:last]) if item.model_id]
    records = store.records(model, [item.model_id for item in reversed(registered)])
    return [
        Version(record=record, aliases=item.aliases) for record, item in zip(records, reversed(registered), strict=True)
    ]


def unregistered_note(store: Store, model: str) -> str:
    """Return one line about the versions that graceful did not register; empty where there are none."""
    numbers = [item.version for item in reversed(store.versions(model)) if not item.model_id]
    if not numbers:
        return ""
    which = f"version{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:20]))}"
    more = f" and {len(numbers) - 20} more" if len(numbers) > 20 else ""
    return f"left out: {which}{more}, not registered by graceful; `graceful lineage repair {model}` restores lost tags"


def draw(family: Family, path: Path, listed: Sequence[Version]) -> None:
    """Write the family as the picture or page that the end of the path asks for.

    Raises:
        SpecError: It ends otherwise.
        StorageError: It cannot be written.
    """
    if path.suffix not in FORMS:
        raise SpecError(f"--draw {path}: must end in one of {', '.join(FORMS)}")
    if path.suffix == ".png":
        write_bytes(path, family_png(family))
    elif path.suffix == ".svg":
        write_text(path, family_svg(family))
    else:
        write_text(path, _page(family, listed) if path.suffix == ".html" else "\n".join(tree(family)) + "\n")


def _page(family: Family, listed: Sequence[Version]) -> str:
    """Return picture and table as one self-contained page: no scripts, no network."""
    rows = chain_rows([version.judged() for version in reversed(listed)])
    return render(
        "lineage.html.j2",
        model=family.model,
        picture=family_svg(family),
        columns=COLUMNS,
        rows=[[row[column] for column in COLUMNS] for row in rows],
    )


def _measured(metrics: dict[str, float]) -> dict[str, Measurement]:
    return {name: Measurement(value=value) for name, value in metrics.items()}
