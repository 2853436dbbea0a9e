"""Focal distillation: match the old model's outputs, most of all where it was right (positive-congruent training).

    L = mean_i of F_i D_i      D: distance of `losses.ops.divergence`, F: weights of `losses.ops.focus`

Source: Yan et al., Positive-congruent training (CVPR 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from graceful.losses.base import FLAT_TEMPERATURE, Correctness, Loss, Merge, PerSample, Reading
from graceful.losses.ops import focus
from graceful.losses.ops.focus import Focus
from graceful.losses.search import Choice, Domain, Point, SearchKey, Span, Value
from graceful.sections import Section, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from graceful.losses.ops.pair import OldVersion, Pair
    from graceful.models.base import Outputs

LM = "lm"
LARGEST_SHARE = 0.9
"""Largest share of a search: beta = 9 x alpha; a spec allows at most 10 x."""
Temperature = Annotated[float, Field(gt=0.0, le=1000.0)] | Literal["lm"]


class FocalDistillation(Loss):
    """Match the old model's outputs, most of all where it was right (positive-congruent training)."""

    kind: Literal["focal_distillation"] = "focal_distillation"
    form: Literal["kl", "lm"] = "kl"
    """kl: tempered divergence times temperature squared; lm: centred squared logit distance, its limit."""
    weight: Weight = 0.3
    """Factor of this loss beside the task's."""
    temperature: Annotated[float, Field(gt=0.0, le=1000.0)] = 100.0
    """Below 20 only with `allow_low_temperature`."""
    allow_low_temperature: bool = False
    """Permit temperatures that have made training collapse."""
    alpha: Annotated[float, Field(ge=0.0)] = 1.0
    """Base weight of every sample."""
    beta: Annotated[float, Field(ge=0.0)] = 5.0
    """Additional weight of the samples in focus; at most 10 x alpha."""
    focus: Focus = "old_correct"
    """`all` is plain (uniform) distillation."""

    quadratic_space: ClassVar[Mapping[str, tuple[Value, ...]] | None] = {"temperature": (LM,)}
    order: ClassVar[int] = 10
    search_name: ClassVar[str] = "distillation"
    search_range: ClassVar[tuple[float, float] | None] = (0.3, 30.0)
    compares_outputs: ClassVar[bool] = True

    @model_validator(mode="after")
    def _require_stable(self) -> FocalDistillation:
        if self.alpha <= 0.0:
            raise ValueError("alpha must be above 0: with focus alone, training from scratch collapses; write 1")
        if self.beta > 10.0 * self.alpha:
            raise ValueError(f"beta must be at most 10 x alpha = {10 * self.alpha:g}, got {self.beta:g}; write 5")
        if self.form == "kl" and self.temperature < 20.0 and not self.allow_low_temperature:
            raise ValueError(
                f"temperature must be at least 20, got {self.temperature:g};"
                " write 100, or add allow_low_temperature: true"
            )
        return self

    @property
    def reads(self) -> frozenset[Reading]:
        """Return what the loss reads: logits, and with the focus `old_correct` also how many the predecessor gets
        right."""
        return frozenset({"logits", "correctness"} if self.focus == "old_correct" else {"logits"})

    def compare(self, pair: Pair, constants: tuple[Tensor, ...]) -> PerSample:
        """Return the distance of the logits in the shared label space, without samples of unknown classes."""
        return PerSample(self._distances(pair.new_logits, pair.old_logits), pair.participates)

    def _distances(self, new: Tensor, old: Tensor) -> Tensor:
        from graceful.losses.ops.divergence import kl_divergence, logit_matching

        return kl_divergence(new, old, temperature=self.temperature) if self.form == "kl" else logit_matching(new, old)

    def never_counts(self, version: OldVersion) -> bool:
        """Return whether no class is known, or alpha is 0 and no sample is in focus."""
        if version.known_share == 0.0 or self.follows_new_model:
            return version.known_share == 0.0
        return self.mean_weight(correct_share=version.correct_share or 0.0, near_chance=version.near_chance) == 0.0

    @property
    def prefers_samples(self) -> bool:
        """Return whether there is a focus."""
        return self.focus != "all"

    @property
    def follows_new_model(self) -> bool:
        """Return whether the focus does."""
        return focus.is_dynamic(self.focus)

    def sample_weights(self, batch: Correctness) -> Tensor:
        """Return `alpha + beta * focus_i`; near chance and with a focus, 0 where the predecessor is wrong."""
        alpha = focus.base_weight(self.focus, alpha=self.alpha, near_chance=batch.near_chance)
        old, new = batch.old_correct, batch.new_correct if self.follows_new_model else batch.old_correct
        weights = focus.raw_weights(self.focus, alpha=alpha, beta=self.beta, old_correct=old, new_correct=new)
        return weights * old if batch.near_chance and self.prefers_samples else weights

    def mean_weight(self, *, correct_share: float, near_chance: bool) -> float:
        """Return the mean of these weights over the training ids that the predecessor knows."""
        alpha = focus.base_weight(self.focus, alpha=self.alpha, near_chance=near_chance)
        return focus.static_mean(self.focus, alpha=alpha, beta=self.beta, old_correct_share=correct_share)

    @property
    def merge(self) -> Merge | None:
        """Return how terms merge; both forms merge exactly unless the focus follows the new model."""
        return None if self.follows_new_model else Merge(form=self.form, temperature=self.temperature)

    def compare_merged(self, outputs: Outputs, target: Tensor) -> Tensor:
        """Return the distance of the logits from the merged ones."""
        return self._distances(outputs.logits, target)

    def too_few_logits(self, top: int) -> str | None:
        """Return what to write instead, because logit matching and high temperatures read all logits."""
        flat = self.form == "lm" or self.temperature > FLAT_TEMPERATURE
        return f"temperature at most {FLAT_TEMPERATURE:g}" if flat else None

    @classmethod
    def search_keys(cls) -> dict[str, SearchKey]:
        """Return the keys of the share of the focus and of the temperature."""
        share = "beta / (alpha + beta) of focal_distillation, at most 0.9; None: [0, 0.9], 0 where its focus is all."
        degrees = (
            "Of focal_distillation, to choose from; lm: logit matching; None: [20, 100, lm], and 2 if it allows low"
        )
        return {
            "focus_share": SearchKey(annotation=tuple[float, float], doc=share, largest=LARGEST_SHARE),
            "temperature": SearchKey(
                annotation=Annotated[tuple[Temperature, ...], Field(min_length=1)], doc=f"{degrees} low ones."
            ),
        }

    @classmethod
    def search_options(cls, written: Loss | None, space: Section) -> dict[str, Domain]:
        """Return the ranges of the share of the focus and of the temperature, with `lm` as one of its values."""
        assert written is None or isinstance(written, FocalDistillation)
        flat = written is not None and written.focus == "all"
        low = written is not None and written.allow_low_temperature
        share = getattr(space, "focus_share", None)
        temperatures = getattr(space, "temperature", None) or ((2.0, 20.0, 100.0, LM) if low else (20.0, 100.0, LM))
        return {
            "focus_share": Span.of(share, (0.0, 0.0) if flat else (0.0, LARGEST_SHARE), log=False),
            "temperature": Choice(
                values=tuple(
                    temperature if isinstance(temperature, str) else f"{temperature:g}" for temperature in temperatures
                )
            ),
        }

    @classmethod
    def known_points(cls, options: Mapping[str, Domain]) -> tuple[Point, ...]:
        """Return plain distillation at the lowest temperature, and logit matching with a strong focus."""
        temperatures = options["temperature"]
        assert isinstance(temperatures, Choice)
        lowest = min(
            (str(temperature) for temperature in temperatures.values if temperature != LM), key=float, default=LM
        )
        even: Point = {"distillation": 5.0, "focus_share": 0.0, "temperature": lowest, "reference": 25.0}
        focused: Point = {"distillation": 4.0, "focus_share": 0.8, "temperature": LM, "reference": 30.0}
        return even, focused

    def search_values(self) -> dict[str, Value]:
        """Return the search point of this section."""
        share = 0.0 if self.focus == "all" else self.beta / (self.alpha + self.beta)
        return {"focus_share": share, "temperature": LM if self.form == LM else f"{self.temperature:g}"}

    @classmethod
    def at(cls, point: Point, options: dict[str, Any]) -> Loss:
        """Build the loss with alpha 1 and beta from the share; `lm` stands for logit matching."""
        share, temperature = float(point["focus_share"]), str(point["temperature"])
        options = {**options, "alpha": 1.0, "beta": share / (1.0 - share)}
        if temperature == LM:
            return cls(**{**options, "form": LM})
        low = {"allow_low_temperature": True} if float(temperature) < 20.0 else {}
        return cls(**{**options, "form": "kl", "temperature": float(temperature), **low})
