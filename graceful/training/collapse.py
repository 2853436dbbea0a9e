"""Detect collapsed training: error at chance on held-out data for several epochs. Floats only; runs in workers.

Few held-out samples prove little: 16 of 24 wrong among three classes may be chance, or bad luck. Only an error whose
whole 95 % interval lies at chance counts. A network that guesses is thus caught on about 1,600 samples of two classes,
800 of three, 70 of a thousand; with fewer, the gate is what holds it.
"""

from __future__ import annotations

from dataclasses import dataclass

from graceful.errors import CollapsedError
from graceful.proportions import wilson

CHANCE = 0.95
"""Held-out error of at least this share of chance is at chance."""
PROGRESS = 0.99
"""A held-out error below this share of the last one is progress: a slow start, no collapse."""
PATIENCE = 2
"""Epochs in a row at chance and without progress that are a collapse."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What one epoch's evaluation found on held-out data.

    Attributes:
        wrong: Samples answered wrongly, in [0, n].
        n: Samples, at least 1.
        classes: Among which the answer was; guessing among them is wrong in 1 - 1/classes of the cases.
    """

    wrong: int
    n: int
    classes: int

    @property
    def error(self) -> float:
        """Share that was wrong."""
        return self.wrong / self.n

    @property
    def chance(self) -> float:
        """Return the error at which chance begins."""
        return CHANCE * (1.0 - 1.0 / self.classes)

    @property
    def at_chance(self) -> bool:
        """Return whether the lower end of the error's Wilson interval reaches chance; never with a single class."""
        return self.classes > 1 and wilson(self.wrong, self.n)[0] >= self.chance

    def streak(self, previous: int, *, former_error: float, excused: bool) -> int:
        """Return the number of epochs in a row at chance without progress, this one included.

        Args:
            previous: The streak before this epoch.
            former_error: Held-out error of the epoch before.
            excused: The epoch began in the first or in the warm-up and does not count.
        """
        if excused or not self.at_chance:
            return 0
        return 1 + (previous if self.error > PROGRESS * former_error else 0)

    def collapsed(self, epoch: int) -> CollapsedError:
        """Return the error that ends a run whose streak reached PATIENCE; epochs count from 1."""
        return CollapsedError(
            f"epoch {epoch}: validation error is {self.error:.3f} ({self.wrong} of {self.n}), twice in a row at least"
            f" {self.chance:.3f}, where chance begins for {self.classes} classes; lower train.optimizer.lr or the"
            " weights of losses",
            {"epoch": epoch, "validation_error": self.error},
        )
