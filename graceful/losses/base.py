"""What every loss is made of: its section of the spec, what it reads of predecessors, its value, its search range.

A loss is one class in one file, derived from `Loss` and registered by its `kind` (see `graceful.losses.registry`). The
class is the section that people write in `compatibility.losses`, so every process imports it: the client to check a
spec, workers to compute values. Modules of losses therefore import torch inside functions only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from graceful.losses.search import Domain, Point, SearchKey, Value
from graceful.sections import Section, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from graceful.losses.ops.pair import OldVersion, Pair
    from graceful.models.base import Outputs

Reading = Literal["logits", "embedding", "gallery", "correctness", "prototypes", "head"]
"""A fact about a predecessor. logits, embedding: its outputs on training samples, cached or computed live; gallery: its
embeddings of them by its gallery encoder, where it embeds galleries otherwise than queries; correctness:
the share of training samples that it gets right; head: its frozen classifier; prototypes: mean directions of the new
version's classes in its embedding space."""

FLAT_TEMPERATURE = 10.0
"""Temperature above which distillation reads all logits alike: with the top 32 of 1,000 64 % of its gradient at 100 was
wrong."""

OUTPUTS: frozenset[Reading] = frozenset({"logits", "embedding", "gallery"})
"""The facts that need a predecessor's outputs in every step."""


class PerSample(NamedTuple):
    """Values of a loss on one batch."""

    values: Tensor
    """[B], fp32 at least."""
    participates: Tensor
    """[B] bool: the samples that count; the others get weight 0."""


class Correctness(Protocol):
    """What the weights of samples may depend on."""

    @property
    def old_correct(self) -> Tensor:
        """Return [B] bool, False where the predecessor does not know the sample or its class."""
        ...

    @property
    def new_correct(self) -> Tensor:
        """Return [B] bool; only losses with `follows_new_model` may read it."""
        ...

    @property
    def near_chance(self) -> bool:
        """Return whether the predecessor's error is far above the latest one's."""
        ...


@dataclass(frozen=True, kw_only=True)
class Merge:
    """How one loss against several cached predecessors becomes one loss against one merged target.

    Attributes:
        form: Which sum is exact, see `graceful.chain.merging`: `kl` and `lm` merge logits, `embedding` directions.
        temperature: tau of `kl`; the other forms do not read it.
    """

    form: Literal["kl", "lm", "embedding"]
    temperature: float = 1.0

    @property
    def of_logits(self) -> bool:
        """Return whether logits are merged, among predecessors that know the same classes; else embeddings of one
        length."""
        return self.form != "embedding"


class Loss(Section):
    """One loss against predecessors: a section of `compatibility.losses`.

    A subclass sets `kind` (a `Literal` with its name as default), gives `weight` a default, and overrides what differs
    from the defaults here. `compare` is the one method that every loss with a term of its own must have.
    """

    kind: str
    weight: Weight = 1.0

    order: ClassVar[int] = 100
    """Position among graceful's own kinds, in listings and in searches; those of other packages follow by name."""
    search_name: ClassVar[str] = ""
    """Name of the weight among the parameters of a search; empty: the kind."""
    search_range: ClassVar[tuple[float, float] | None] = (0.1, 10.0)
    """Weights that a search tries, on a log scale; None: it does not vary the weight."""
    quadratic_space: ClassVar[Mapping[str, tuple[Value, ...]] | None] = None
    """Keys of `tune.space`, and their values, with which the loss is quadratic in the logits; None: it never is."""
    compares_outputs: ClassVar[bool] = False
    """Whether the loss compares outputs of both versions. A search point has exactly one such loss."""
    aligns_embeddings: ClassVar[bool] = False
    """Whether the loss puts new embeddings where old ones are, so that new queries find old items of a gallery."""
    query_weight: ClassVar[float | None] = None
    """Weight in the default losses of a query model; None: it is none of them."""
    reads_labels: ClassVar[bool] = True
    """Whether the loss reads the labels of the samples."""

    @property
    def reads(self) -> frozenset[Reading]:
        """Return the facts about predecessors that the loss reads; empty: none."""
        return frozenset()

    # --- its value ---

    @property
    def adds_term(self) -> bool:
        """Return whether the loss adds a term to the task's loss. If not, it weighs the task's samples, see
        `emphasis`."""
        return True

    def constants(self, version: OldVersion, known: Tensor) -> tuple[Tensor, ...]:
        """Return tensors of one predecessor that `compare` reads in every step, on the CPU.

        Args:
            version: The predecessor.
            known: [C_new] int64: its label for each class of the new version, -1: unknown.

        Raises:
            ValueError: The predecessor lacks what the loss needs.
        """
        return ()

    def compare(self, pair: Pair, constants: tuple[Tensor, ...]) -> PerSample:
        """Return the distance of the new version from one predecessor for each sample of a batch.

        Args:
            pair: The batch beside the predecessor.
            constants: What the method of that name returned, on the device of the batch.
        """
        raise NotImplementedError(f"{self.kind} adds no term; override compare, or emphasis with adds_term = False")

    def emphasis(self, pairs: Sequence[Pair]) -> tuple[Tensor, float]:
        """Return how much more than 1 each sample weighs in the task's loss, [B], and its mean over training ids.

        Only called where `adds_term` is False. `pairs` holds one entry for each predecessor, at least one.
        """
        raise NotImplementedError(f"{self.kind} adds a term and does not weigh the task's samples")

    def never_counts(self, version: OldVersion) -> bool:
        """Return whether the loss gives weight 0 to every sample of a predecessor; such losses are reported."""
        return False

    # --- weights of its samples: all alike, unless a subclass says otherwise ---

    @property
    def prefers_samples(self) -> bool:
        """Return whether some samples weigh more than others, so that predecessors near chance pull only where
        right."""
        return False

    @property
    def follows_new_model(self) -> bool:
        """Return whether weights of samples depend on the new version's outputs; their mean then runs while
        training."""
        return False

    def sample_weights(self, batch: Correctness) -> Tensor | None:
        """Return weights [B], detached, before they are divided by their mean; None: all samples weigh 1."""
        return None

    def mean_weight(self, *, correct_share: float, near_chance: bool) -> float:
        """Return the mean of `sample_weights` over the training ids of known classes; not called if they run.

        Args:
            correct_share: Share of those ids that the predecessor gets right, in [0, 1].
            near_chance: As in `Correctness`.
        """
        return 1.0

    # --- several cached predecessors as one ---

    @property
    def merge(self) -> Merge | None:
        """Return how terms against several cached predecessors merge; None: they do not. Never if
        `follows_new_model`."""
        return None

    def compare_merged(self, outputs: Outputs, target: Tensor) -> Tensor:
        """Return the distance [B] from a merged target; only called where `merge` is not None.

        Args:
            outputs: The outputs of the new version, fp32 at least; logits of the classes of the group only.
            target: [B, S] logits, or [B, d] mean directions.
        """
        raise NotImplementedError(f"{self.kind} has a merge but no compare_merged")

    def too_few_logits(self, top: int) -> str | None:
        """Return what to write instead where caches keep the `top` largest logits only and the loss reads more."""
        return None

    # --- a search of its options ---

    @classmethod
    def weight_name(cls) -> str:
        """Name of its weight among the parameters of a search."""
        return cls.search_name or str(cls.model_fields["kind"].default)

    @classmethod
    def search_keys(cls) -> dict[str, SearchKey]:
        """Return the keys of `tune.space` beside the weight's, by name."""
        return {}

    @classmethod
    def search_options(cls, written: Loss | None, space: Section) -> dict[str, Domain]:
        """Return what a search varies beside the weight: parameter name -> range.

        Args:
            written: The loss as the spec has it; None: it has none of this kind.
            space: The section `tune.space`, with the keys that `search_keys` announced.
        """
        return {}

    @classmethod
    def known_points(cls, options: Mapping[str, Domain]) -> tuple[Point, ...]:
        """Return treatments that have worked before, with which a search begins; names as in the search."""
        return ()

    def search_values(self) -> dict[str, Value]:
        """Return the values of `search_options` at which the loss is as it is written."""
        return {}

    @classmethod
    def at(cls, point: Point, options: dict[str, Any]) -> Loss:
        """Build the loss of a search point.

        Args:
            point: Values of the search.
            options: The written loss as keyword arguments, with the point's weight; empty keys take defaults.
        """
        return cls(**options)
