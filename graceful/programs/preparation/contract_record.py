"""Record of what a run had promised its predecessors, and how its training went. Runs in the driver."""

from __future__ import annotations

from pathlib import Path

from graceful.chain.contract import Contract
from graceful.storage import write_json
from graceful.training.driver import TrainingResult

PROMISED = "contract.json"
_HISTORY = ("epoch", "validation_error", "constraint_error", "feasible", "nfr", "multipliers", "conflict")


def record(run_dir: Path, contract: Contract | None, result: TrainingResult) -> None:
    """Write what a run had promised and how it went, for the constraint report; nothing is written without budgets."""
    if contract is not None:
        epochs = [{key: row.get(key) for key in _HISTORY} for row in result.history]
        document = {"schema": 1, **contract.document(), "epochs": epochs, "chosen_epoch": result.chosen_epoch}
        write_json(run_dir / PROMISED, document)
