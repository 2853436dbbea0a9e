"""Few samples of new classes: linear-quadratic fine-tuning against fine-tuning and a linear probe.

    python -m benchmarks.lqf_fewshot            # writes benchmarks/results/lqf_fewshot.json; resumes from --rows
    python -m benchmarks.lqf_fewshot --data lite0    # the pictures of benchmarks/lite0_features.py
    python -m benchmarks.lqf_fewshot --quick    # one seed, 2 and 5 shots, prints only

A small network with batch normalisation is trained on 30 characters; then it learns 10 others from 2, 5, 10 and 20
images of each, after a previous release that had 1, 2, 5 and 10 of them (subsets) and the same method. Every method
begins at the same body and the same random head. `error` and `nfr` (right in the previous release, wrong now) are on
the test typefaces; `order_disagreement` is the share of test answers that differ when the same samples come in another
order, `seed_disagreement` when the head is drawn with another seed, both at 10 images. Learning rates, penalties of
cross-entropy and strengths are chosen on the validation typefaces with a seed that is not among those reported, and are
the column `value`. `seconds` are of the processor; methods on the same linearised network share it, and the first pays.

probe: the head alone, squared error. finetune: Adam on all weights, cross-entropy (ce) or squared error (mse), batch
normalisation frozen or training. lqf: as graceful trains it. Without an ingredient: lqf-relu (no slope),
lqf-ce (cross-entropy on the linearised network), lqf-sgd (momentum in place of a solver). lqf+pc: with the previous
release as a change of targets.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import lite0_features, results
from benchmarks.lite0_features import Top
from graceful import spec, tasks
from graceful.lqf import exact
from graceful.lqf.activations import make_leaky
from graceful.lqf.network import names_of
from graceful.lqf.operators import grouped, unflat
from graceful.lqf.tangent import Tangent
from graceful.lqf.targets import Pull, label_targets, relabelled
from graceful.models.base import outputs_of

CLASSES, KNOWN, AMPLITUDE, SLOPE = 10, 30, 15.0, 0.01
CHAIN, COMPARED = (1, 2, 5, 10, 20), (10,)
SEEDS, TUNING = (0, 1, 2, 3, 4), (100,)
RATES = (1e-3, 3e-3, 1e-2)
STEPS, BATCH = 100, 16
STRENGTHS = (1.0, 4.0, 16.0)
FINETUNE = tuple(f"finetune-{loss}-{norms}" for loss in ("ce", "mse") for norms in ("frozen", "training"))


class Small(nn.Module):
    """Convolutions with batch normalisation, an embedding of 32, a head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, out, size in ((1, 8, 5), (8, 16, 3), (16, 16, 3)):
            layers += [nn.Conv2d(channels, out, size, stride=2, padding=size // 2), nn.BatchNorm2d(out), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 32), nn.ReLU())
        self.head = nn.Linear(32, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Map images to embedding."""
        embedding: Tensor = self.body(x)
        return embedding

    def classify(self, embedding: Tensor) -> Tensor:
        """Map embedding to logits."""
        logits: Tensor = self.head(embedding)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        return self.classify(self.embed(x))


Network = Small | Top


@dataclass(frozen=True)
class Data:
    """Images and labels of the new classes."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    name: str = "glyphs"
    classes: int = CLASSES

    def shots(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return the first `count` images of each class in a random order: smaller sets are subsets."""
        x, y = self.train
        generator = torch.Generator().manual_seed(seed)
        chosen = [
            where[torch.randperm(len(where), generator=generator)[:count]]
            for where in ((y == label).nonzero().flatten() for label in range(self.classes))
        ]
        rows = torch.cat(chosen)
        return x[rows], y[rows]


def load() -> tuple[Data, tuple[Tensor, Tensor]]:
    """Return the few-shot data, and images of the known classes to train the body on."""
    task = tasks.build(spec.GlyphsTask())
    splits = {}
    for split in ("train", "validation", "test"):
        samples = task.samples(split)  # type: ignore[arg-type]
        images = torch.as_tensor(task.transform(samples.read(np.arange(len(samples))), None))
        splits[split] = images, torch.from_numpy(samples.labels)

    def part(split: str, low: int, high: int) -> tuple[Tensor, Tensor]:
        images, labels = splits[split]
        keep = (labels >= low) & (labels < high)
        return images[keep], labels[keep] - low

    new = [part(split, KNOWN, KNOWN + CLASSES) for split in ("train", "validation", "test")]
    return Data(*new), part("train", 0, KNOWN)


def pretrained(known: tuple[Tensor, Tensor], *, slope: float) -> Small:
    """Train the body on the known classes."""
    torch.manual_seed(0)
    network = Small(KNOWN)
    make_leaky(network, slope)
    descend(network, *known, loss="ce", training=True, rate=3e-3, steps=6 * len(known[1]) // 64, batch=64, seed=0)
    return network


def begun(body: Network, seed: int, classes: int) -> Network:
    """Return the body with a random head for the new classes, in eval mode."""
    network = copy.deepcopy(body)
    torch.manual_seed(1000 + seed)
    network.head = nn.Linear(network.head.in_features, classes)
    return network.eval()


def descend(
    network: Network, x: Tensor, y: Tensor, *, loss: str, training: bool, rate: float, steps: int, batch: int, seed: int
) -> Network:
    """Train all weights in place with Adam and a cosine."""
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    network.train(training)
    order: list[int] = []
    for _ in range(steps):
        while len(order) < min(batch, len(y)):
            order += torch.randperm(len(y), generator=generator).tolist()
        rows, order = order[: min(batch, len(y))], order[min(batch, len(y)) :]
        logits = network(x[rows])
        if loss == "ce":
            value = F.cross_entropy(logits, y[rows])
        else:
            targets = label_targets(y[rows], classes=logits.shape[1], amplitude=AMPLITUDE).float()
            value = 0.5 * (logits - targets).square().sum(1).mean()
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return network.eval()


def answers(network: Network, x: Tensor) -> Tensor:
    """Return logits."""
    with torch.no_grad():
        return network(x)


@dataclass
class Linear:
    """A linearised network on some samples: J, its kernel, outputs at the start."""

    network: Network
    x: Tensor
    y: Tensor
    scope: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.classes = self.network.head.out_features
        self.tangent = Tangent(self.network, outputs_of, names_of(self.network, self.scope))
        parameters = sum(tensor.numel() for tensor in self.tangent.start.values())
        (whole,) = grouped(self.tangent.start, parameters)
        self.rows = self.tangent.rows(self.x, whole).flatten(0, 1)
        self.kernel = (self.rows @ self.rows.T).double()
        self.start = self.tangent.outputs(self.x).logits.double()
        self.labels = label_targets(self.y, classes=self.classes, amplitude=AMPLITUDE)

    @functools.cached_property
    def ridge(self) -> float:
        """Return the ridge of the smallest leave-one-out error."""
        ones = torch.ones(len(self.kernel), dtype=torch.float64)
        system = exact.DualSystem(self.kernel, ones, classes=self.classes)
        residual = (self.labels - self.start).reshape(-1)
        return exact.choose_ridge(system, residual, residual).ridge

    @functools.cached_property
    def largest(self) -> float:
        """Return the largest eigenvalue of the kernel, by power iterations."""
        vector = torch.ones(len(self.kernel), dtype=torch.float64)
        for _ in range(200):
            vector = self.kernel @ (vector / vector.norm())
        return float(vector.norm())

    def solved(self, targets: Tensor, weights: Tensor, ridge: float) -> Tensor:
        """Return delta by one Cholesky factorisation."""
        system = self.kernel + torch.diag(ridge / weights.reshape(-1))
        alpha = torch.cholesky_solve((targets - self.start).reshape(-1, 1), torch.linalg.cholesky(system))
        return self.delta(alpha.flatten())

    def delta(self, alpha: Tensor) -> Tensor:
        """Return J'alpha."""
        return self.rows.T @ alpha.float()

    def answers(self, delta: Tensor, x: Tensor) -> Tensor:
        """Return logits of the linearised network."""
        named = unflat(delta, self.tangent.start)
        return torch.cat([self.tangent.moved(part, named).logits for part in x.split(256)])

    def by_entropy(self, penalty: float) -> Tensor:
        """Return delta that minimises cross-entropy on the linearised network, by L-BFGS in the dual."""
        alpha = torch.zeros(len(self.kernel), dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([alpha], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            moved = self.kernel @ alpha
            logits = self.start + moved.reshape(-1, self.classes)
            value = F.cross_entropy(logits, self.y) + 0.5 * penalty * (alpha @ moved)
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        return self.delta(alpha.detach())

    def by_momentum(self, rate: float, ridge: float, *, seed: int) -> Tensor:
        """Return delta after as many steps of momentum as fine-tuning takes, on the quadratic."""
        largest = self.largest / len(self.y)
        residual = (self.labels - self.start).float()
        rows = self.rows.reshape(len(self.y), self.classes, -1)
        generator, order = torch.Generator().manual_seed(seed), []
        delta = velocity = torch.zeros(rows.shape[2])
        size = min(BATCH, len(self.y))
        for step in range(STEPS):
            while len(order) < size:
                order += torch.randperm(len(self.y), generator=generator).tolist()
            part, order = order[:size], order[size:]
            chosen = rows[part].flatten(0, 1)
            errors = chosen @ delta - residual[part].flatten()
            gradient = chosen.T @ errors / size + ridge / len(self.y) * delta
            velocity = 0.9 * velocity + gradient
            delta = delta - 0.5 * (1.0 + np.cos(np.pi * step / STEPS)) * rate / largest * velocity
        return delta


def wrong(logits: Tensor, y: Tensor) -> float:
    """Return the error rate."""
    return float((logits.argmax(1) != y).double().mean())


def flips(old: Tensor, new: Tensor, y: Tensor) -> float:
    """Return the negative flip rate."""
    return float(((old.argmax(1) == y) & (new.argmax(1) != y)).double().mean())


def differ(first: Tensor, second: Tensor) -> float:
    """Return the share of different answers."""
    return float((first.argmax(1) != second.argmax(1)).double().mean())


Fitted = Callable[[Tensor], Tensor]
"""Images -> logits."""


@dataclass
class Fitter:
    """Trains one method on some shots; methods on the same linearised network share it."""

    data: Data
    bodies: dict[float, Small] | dict[float, Top]
    shared: dict[tuple[Any, ...], Linear] = field(default_factory=dict)

    def fit(
        self, method: str, shots: int, seed: int, value: float, *, head: int, order: int, old: Fitted | None
    ) -> Fitted:
        """Return the trained version.

        Args:
            method: As in the rows.
            shots: Of each class.
            seed: Of the shots.
            value: What was chosen: learning rate, penalty or strength.
            head: Seed of the head.
            order: Seed of the order of samples.
            old: The previous release, for lqf+pc.
        """
        x, y = self.data.shots(shots, seed)
        mixed = torch.randperm(len(y), generator=torch.Generator().manual_seed(order))
        x, y = x[mixed], y[mixed]
        slope = SLOPE if method.startswith("lqf") and method != "lqf-relu" else 0.0
        network = begun(self.bodies[slope], head, self.data.classes)
        if method.startswith("finetune"):
            _, loss, norms = method.split("-")
            descend(
                network, x, y, loss=loss, training=norms == "training", rate=value, steps=STEPS, batch=BATCH, seed=order
            )
            return lambda images: answers(network, images)
        key = (shots, seed, slope, head, order, method == "probe")
        if key not in self.shared:
            self.shared = {known: linear for known, linear in self.shared.items() if known[1] == seed}
            self.shared[key] = Linear(network, x, y, ("head",) if method == "probe" else ())
        linear = self.shared[key]
        delta = self._delta(linear, method, value, order=order, old=old)
        return lambda images: linear.answers(delta, images)

    def _delta(self, linear: Linear, method: str, value: float, *, order: int, old: Fitted | None) -> Tensor:
        ones = torch.ones_like(linear.labels)
        if method == "lqf-ce":
            return linear.by_entropy(value * float(linear.kernel.diagonal().mean()))
        ridge = linear.ridge
        if method == "lqf-sgd":
            return linear.by_momentum(value, ridge, seed=order)
        if method != "lqf+pc" or old is None:
            return linear.solved(linear.labels, ones, ridge)
        outputs = old(linear.x).double()
        focus = 1.0 + 5.0 * (outputs.argmax(1) == linear.y)
        strength = (value * focus / focus.mean()).unsqueeze(1).expand_as(outputs)
        targets, weights = relabelled(linear.labels, ones[:, 0], [Pull(outputs=outputs, strength=strength)])
        return linear.solved(targets, weights, ridge)


CHOICES: dict[str, tuple[float, ...]] = {
    "probe": (0.0,),
    **dict.fromkeys(FINETUNE, RATES),
    "lqf": (0.0,),
    "lqf-relu": (0.0,),
    "lqf-ce": (1e-6, 1e-5, 1e-4),
    "lqf-sgd": (0.1, 0.5),
    "lqf+pc": STRENGTHS,
}


def chosen(fitter: Fitter, method: str, shots: int) -> float:
    """Return the value with the smallest validation error; of strengths, the strongest that costs at most a point."""
    values = CHOICES[method]
    if len(values) == 1:
        return values[0]
    x, y = fitter.data.validation
    errors = []
    previous = CHAIN[CHAIN.index(shots) - 1] if shots > CHAIN[0] else None
    for value in values:
        total = 0.0
        for seed in TUNING:
            old = None
            if method == "lqf+pc" and previous is not None:
                old = fitter.fit("lqf", previous, seed, 0.0, head=seed, order=0, old=None)
            total += wrong(fitter.fit(method, shots, seed, value, head=seed, order=0, old=old)(x), y)
        errors.append(total / len(TUNING))
    if method == "lqf+pc":
        free = sum(wrong(fitter.fit("lqf", shots, s, 0.0, head=s, order=0, old=None)(x), y) for s in TUNING)
        allowed = [value for value, error in zip(values, errors, strict=True) if error <= free / len(TUNING) + 0.01]
        return max(allowed, default=values[0])
    return values[errors.index(min(errors))]


def rows_of(
    fitter: Fitter, method: str, seed: int, values: dict[int, float], chain: tuple[int, ...], *, done: set[int]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each release of the chain after the first that has none yet."""
    x, y = fitter.data.test
    old: Fitted | None = None
    old_logits: Tensor | None = None
    for shots in chain:
        begun_at = time.process_time()
        new = fitter.fit(method, shots, seed, values[shots], head=seed, order=0, old=old)
        seconds = time.process_time() - begun_at
        logits = new(x)
        if old_logits is not None and shots not in done:
            others: list[float | None] = [None, None]
            if shots in COMPARED:
                again = [(seed, 1), (seed + 50, 0)]
                fits = [
                    fitter.fit(method, shots, seed, values[shots], head=head, order=order, old=old)
                    for head, order in again
                ]
                others = [round(differ(logits, fitted(x)), 5) for fitted in fits]
            yield {
                "data": fitter.data.name,
                "method": method,
                "shots": shots,
                "seed": seed,
                "error": round(wrong(logits, y), 5),
                "nfr": round(flips(old_logits, logits, y), 5),
                "order_disagreement": others[0],
                "seed_disagreement": others[1],
                "seconds": round(seconds, 3),
                "value": values[shots],
                "test_ids": len(y),
            }
        old, old_logits = new, logits


def main() -> None:
    """Measure, or go on where an earlier call ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=Path, default=Path("/tmp/lqf_fewshot.jsonl"), help="rows as they come")
    parser.add_argument("--data", choices=("glyphs", "lite0"), default="glyphs")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    fitter = fitter_of(options.data)
    seeds, chain = (SEEDS[:1], CHAIN[:3]) if options.quick else (SEEDS[: options.seeds], CHAIN)
    path = options.rows.with_suffix(".quick") if options.quick else options.rows
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    values: dict[str, dict[int, float]] = {
        method: {row["shots"]: row["value"] for row in found if row["method"] == method and row.get("chosen")}
        for method in CHOICES
    }
    for seed in seeds:
        for method in CHOICES:
            done = {row["shots"] for row in found if (row["method"], row.get("seed")) == (method, seed)}
            if done >= set(chain[1:]):
                continue
            for shots in (shots for shots in chain if shots not in values[method]):
                values[method][shots] = chosen(fitter, method, shots)
                keep(path, {"method": method, "shots": shots, "value": values[method][shots], "chosen": True})
            for row in rows_of(fitter, method, seed, values[method], chain, done=done):
                keep(path, row)
                print(row, flush=True)
    measured = [json.loads(line) for line in path.read_text().splitlines()]
    measured = [row for row in measured if not row.get("chosen")]
    others = json.loads((results.FOLDER / "lqf_fewshot.json").read_text())["rows"]
    if not options.quick:
        rows = [*(row for row in others if row["data"] != options.data), *measured]
        print(results.write("lqf_fewshot", rows, time.monotonic() - started))


def fitter_of(data: str) -> Fitter:
    """Return what trains the methods on a data set."""
    if data == "lite0":
        train, validation, test = lite0_features.splits()
        few = Data(train, validation, test, name=data, classes=len(lite0_features.GROUPS))
        return Fitter(few, {slope: lite0_features.top(slope=slope) for slope in (0.0, SLOPE)})
    glyphs, known = load()
    return Fitter(glyphs, {slope: pretrained(known, slope=slope) for slope in (0.0, SLOPE)})


def keep(path: Path, row: dict[str, Any]) -> None:
    """Append a row to the file of an interrupted run."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
