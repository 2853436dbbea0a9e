"""The memory of a linearised run: the predecessor's as a term of the objective, and what is kept. Runs in workers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graceful.errors import SpecError
from graceful.lqf import kfac, memory
from graceful.lqf.contributions import NAMES, TENSORS, Contributions
from graceful.lqf.exact import DualSystem
from graceful.lqf.memory import Factored, LowRank, Memory, Remembered
from graceful.lqf.network import Linearised
from graceful.lqf.operators import Batched, flat
from graceful.models.bundle_files import read_beside
from graceful.spec.methods import Memory as Section
from graceful.training.linear_problem import LinearProblem


@dataclass(frozen=True, kw_only=True)
class Predecessor:
    """A memory that a predecessor keeps, and its delta.

    Attributes:
        name: The name of the version.
        kept: Its memory.
        delta: [P] float64.
    """

    name: str
    kept: Memory
    delta: Tensor

    def term(self, *, own: int, multiplier: float) -> Remembered:
        """Return it as a term beside `own` samples."""
        return Remembered(
            curvature=self.kept.curvature,
            share=self.kept.samples / (self.kept.samples + own),
            penalty=self.kept.penalty,
            centre=self.delta,
            multiplier=multiplier,
        )


def of_predecessor(linear: LinearProblem, section: Section) -> Predecessor | None:
    """Return what the version that training starts from remembers; None where it is none that was linearised.

    Raises:
        SpecError: It remembers nothing, something of other weights, or some of the training samples.
        DataError, IntegrityError: Its file is missing or damaged.
    """
    start = linear.job.start
    described = None if start is None else start.description.linearised
    if start is None or described is None:
        return None
    if memory.FILE not in described.files:
        raise SpecError(
            f"train.method.memory: {start.name} keeps no memory, so its data would be forgotten; refresh it with"
            " train.method.memory, or leave memory out and train on all data"
        )
    if described.start_sha256 != linear.start.digest or described.names != linear.start.names:
        raise SpecError(
            f"train.method.memory: the memory of {start.name} belongs to other starting weights, classes or"
            " train.method.scope; keep these as they were, or leave memory out and train on all data"
        )
    _require_new(linear, start.name, {name: described.files[name] for name in described.files if name != memory.FILE})
    content = read_beside(start.folder, {memory.FILE: described.files[memory.FILE]})[memory.FILE]
    kept = Memory.parse(content, linear.start.network, linear.start.names, where=start.name)
    if isinstance(kept.curvature, LowRank) != (section.kind == "low_rank"):
        other = "kfac" if section.kind == "low_rank" else "low_rank"
        raise SpecError(f"train.method.memory.kind: {start.name} keeps {other}, got {section.kind}; write {other}")
    network = start.whole().network
    assert isinstance(network, Linearised)
    delta = flat(network.deltas(), linear.tangent().start).double().to(linear.context.device)
    return Predecessor(name=start.name, kept=kept, delta=delta)


def _require_new(linear: LinearProblem, name: str, files: dict[str, str]) -> None:
    """Refuse training samples that the memory has counted already."""
    start = linear.job.start
    if start is None or set(files) != {TENSORS, NAMES}:
        return
    seen = set(Contributions.parse(read_beside(start.folder, files), where=name).ids)
    again = sum(str(sample) in seen for sample in linear.all.samples.ids[linear.all.rows])
    if again:
        raise SpecError(
            f"train.method.memory: {again} of the {linear.samples} training samples are those of {name}, whose memory"
            " counts them already; give the new data alone, or leave memory out"
        )


def kept(
    linear: LinearProblem, section: Section, before: Predecessor | None, *, penalty: float, moments: dict[str, Tensor]
) -> Memory:
    """Return what this version keeps: of its own samples, and of those that the predecessor remembers.

    Args:
        linear: What was solved.
        section: The section of the spec.
        before: What the predecessor keeps; None: nothing.
        penalty: l.
        moments: Kronecker factors of its own samples.

    Raises:
        SpecError: Eigenvectors need a system that does not fit into memory.
    """
    own, old = linear.samples, 0 if before is None else before.kept.samples
    curvature: LowRank | Factored
    if section.kind == "kfac":
        parts = before.kept.curvature.parts if before and isinstance(before.kept.curvature, Factored) else ()
        curvature = Factored(parts=(*parts, (own, moments)), factors=())  # it is only written
    else:
        curvature = _eigenvectors(linear, rank=section.rank)
        if before is not None and isinstance(before.kept.curvature, LowRank):
            shares = (own / (own + old), old / (own + old))
            curvature = curvature.joined(before.kept.curvature, shares=shares, rank=section.rank)
    return Memory(curvature=curvature, samples=own + old, penalty=penalty)


def _eigenvectors(linear: LinearProblem, *, rank: int) -> LowRank:
    """Return the largest eigenvectors of J'WJ/N, from the system of samples x classes."""
    weights = linear.problem(linear.all, 0.0).weights
    derivative: Batched = linear.derivative(linear.all)
    system = DualSystem(linear.kernel(linear.all), weights, classes=linear.classes)
    values, rows = system.largest(rank)
    vectors = torch.stack([derivative.pull(row) for row in rows.T], dim=1) / values.sqrt()
    return LowRank(vectors=vectors, values=values / linear.samples)


def mixed_moments(
    moments: dict[str, Tensor], before: Predecessor | None, *, own: int, multiplier: float
) -> dict[str, Tensor]:
    """Return Kronecker factors for a preconditioner of own samples and memory together."""
    if before is None or not isinstance(before.kept.curvature, Factored):
        return moments
    total = own + before.kept.samples
    mixed = {name: own / total * tensor for name, tensor in moments.items()}
    for count, part in before.kept.curvature.parts:
        for name, tensor in part.items():
            factor = count / total * (1.0 if name.startswith(kfac.INPUTS) else multiplier)
            mixed[name] = mixed[name] + factor * tensor.to(mixed[name])
    return mixed
