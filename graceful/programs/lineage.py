"""Read a model's versions back from the registry: what was measured between them, which one serves. In the driver."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from graceful.errors import SpecError
from graceful.lineage import LineageRecord, Store
from graceful.programs.present import Judged
from graceful.report import Measurement


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
        """Its numbers for the table."""
        against = {
            edge.name: {
                **_measured(edge.metrics),
                "negative_flip_rate": Measurement(value=edge.value, lower=edge.lower, upper=edge.upper),
            }
            for edge in self.record.edges
        }
        outcome = " ".join([self.record.verdict, *(f"({alias})" for alias in self.aliases)])
        return Judged(name=self.record.name, outcome=outcome, alone=_measured(self.record.metrics), against=against)

    def document(self) -> dict[str, object]:
        """As JSON values."""
        return {**asdict(self.record), "aliases": list(self.aliases)}


def versions(store: Store, model: str) -> list[Version]:
    """Every version of a model, oldest first, held ones too.

    Raises:
        SpecError: The registry knows no such model.
        RegistryError: It is unreachable, or a registration was never finished.
    """
    listed = store.versions(model)
    if not listed:
        raise SpecError(f"model {model}: registry {store.display_uri} knows no version of it; run `graceful refresh`")
    records = store.records(model, [item.model_id for item in reversed(listed)])
    return [
        Version(record=record, aliases=item.aliases) for record, item in zip(records, reversed(listed), strict=True)
    ]


def _measured(metrics: dict[str, float]) -> dict[str, Measurement]:
    return {name: Measurement(value=value) for name, value in metrics.items()}
