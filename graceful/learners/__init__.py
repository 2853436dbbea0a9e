"""How a version learns: from raw items to a batch, from a batch to outputs, from outputs to the task's loss.

`Learner` is the protocol, `batch` has what graceful does with batches without knowing what is in them, `classifier` the
learner of every task that names none. Driver and workers.
"""

from __future__ import annotations

from graceful.learners.base import DEFAULT_ENCODER, KeepsAssets, Learner, Role, encoder_for, roles, run
from graceful.learners.batch import Batch
from graceful.learners.classifier import Classifier, learner_of

__all__ = [
    "DEFAULT_ENCODER",
    "Batch",
    "Classifier",
    "KeepsAssets",
    "Learner",
    "Role",
    "encoder_for",
    "learner_of",
    "roles",
    "run",
]
