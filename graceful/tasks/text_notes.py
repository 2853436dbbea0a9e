"""Notes of a report about texts that are cut. Driver."""

from __future__ import annotations

import numpy as np

from graceful.learners.text import TextLearner
from graceful.tasks.base import Samples

LOOKED_AT = 10_000
"""Texts that are looked at."""
AT_ONCE = 256
"""Texts that are read together."""


def cut_note(learner: TextLearner, train: Samples, *, what: str) -> list[str]:
    """Return a sentence about texts that are longer than the network reads; of many samples, some are looked at.

    Args:
        learner: Cuts them.
        train: The training split.
        what: What its samples are called.
    """
    looked_at = np.unique(np.linspace(0, len(train) - 1, min(len(train), LOOKED_AT)).astype(np.int64))
    cut = sum(
        learner.cut(train.read(looked_at[start : start + AT_ONCE])) for start in range(0, len(looked_at), AT_ONCE)
    )
    if not cut:
        return []
    which = what if len(looked_at) == len(train) else f"{what} that were looked at"
    return [
        f"{cut} of {len(looked_at)} {which} ({cut / len(looked_at):.1%}) have texts longer than"
        f" task.network.max_length = {learner.max_length} tokens, which are cut there"
    ]
