"""Is the share of a blend chosen well? Other rules for it, judged by the teacher they give, on test typefaces.

    python -m benchmarks.teacher_choices --home DIR --splits 0-9   # 25 CPU minutes, writes results/teacher_choices.json
    python -m benchmarks.teacher_choices --quick                   # one split, one epoch, prints only

The update is that of `half_flips`, one seed. No student is trained: a blend's teacher mixes the outputs of three
reference runs with those of the old version, and what it gets wrong is known at once. All rules ask for the lowest
NFR at an error of at most 0.93 of a reference run's, on the samples that they choose on:

    held-out      one share, chosen on the validation and constraint splits, as `compatibility.blend` does it
    out-of-fold   one share, chosen on training samples: each reference run leaves out a third of the families, and is
                  asked about these alone; families that the old version has learnt are left out
    test          one share, chosen on the test split itself: what a perfect choice would give
    gate          a share for each sample, from the confidence of both, the entropy of the reference runs, and whether
                  they agree with the old version: a logistic function of five numbers, fitted on the held-out samples
                  to cross-entropy plus `mu` times that on samples which the old version gets right; `mu` is chosen

Rows are measured with the whole reference runs on the test split, in percent. `share` is the mean over samples,
`ensemble_error` and `ensemble_nfr` are those of the reference runs together without the old version, `reference_error`
that of a single one in the mean.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import results, runs
from benchmarks.half_flips import Update, numbers, task_of
from graceful.chain import Predecessor, blending, shares
from graceful.chain.shares import Evidence
from graceful.programs.fitting.blend import HeldOut, evidence_of
from graceful.spec import Blend
from graceful.tasks.base import Samples, Split, Task

RUNS, SEED, MUS = 3, 0, (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SECTION = Blend()
RULES = ("held-out", "out-of-fold", "test", "gate")
Row = dict[str, Any]


class WithoutFold:
    """A task whose training split lacks some samples; everything else is the task's.

    Args:
        task: The task.
        kept: Positions of the training samples that stay.
    """

    def __init__(self, task: Task, kept: np.ndarray) -> None:
        self._task, self._kept = task, kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def samples(self, split: Split) -> Samples:
        """Return a split."""
        samples = self._task.samples(split)
        if split != "train":
            return samples
        return samples.at(self._kept, digest=f"{samples.digest}-{len(self._kept)}-{int(self._kept.sum())}")


def folds(samples: Samples) -> np.ndarray:
    """Return [N] the fold of each training sample: a third of the families each."""
    names = np.unique(samples.groups)
    order = np.random.default_rng(SEED).permutation(len(names))
    fold_of = dict(zip(names[order].tolist(), (np.arange(len(names)) % RUNS).tolist(), strict=True))
    return np.asarray([fold_of[name] for name in samples.groups.tolist()])


def measure(home: Path, update: Update) -> list[Row]:
    """Train what is missing of a split, and return a row for each rule."""
    old_task, task = task_of(update, "v1"), task_of(update, "v2")
    train, unseen = (
        task.samples("train"),
        ~np.isin(task.samples("train").groups, np.unique(old_task.samples("train").groups)),
    )

    def version(which: str, name: str, seed: int, of: Any) -> Predecessor:
        wanted = update.spec(which, name, seed=seed, length=1, compatibility={})
        return runs.load(runs.trained(wanted, folder=home / f"{name}-{update.split}", task=of)[0])

    old, fold = version("v1", "old", SEED, old_task), folds(train)
    whole = [version("v2", f"run-{k}", 20_000 + k, task) for k in range(RUNS)]
    parts = [version("v2", f"part-{k}", 30_000 + k, WithoutFold(task, np.flatnonzero(fold != k))) for k in range(RUNS)]
    ask = asking(old, task)
    held_out = ask(whole, HeldOut.of_task(task))
    test = ask(whole, HeldOut.of([task.samples("test")]))
    left_out = [ask([parts[k]], HeldOut(parts=((train, np.flatnonzero((fold == k) & unseen)),))) for k in range(RUNS)]
    found = {
        "held-out": chosen(held_out),
        "out-of-fold": chosen(joined(left_out)),
        "test": chosen(test),
    }
    share = {name: torch.full((len(test.labels),), one, dtype=torch.float64) for name, one in found.items()}
    gate, mu = fitted_gate(held_out)
    share["gate"] = gate(features(test))
    return [row_of(update, rule, test, share[rule], mu=mu if rule == "gate" else None) for rule in RULES]


def asking(old: Predecessor, task: Task) -> Callable[[Sequence[Predecessor], HeldOut], Evidence]:
    """Return what asks reference runs and the old version about samples."""
    return lambda references, samples: evidence_of(
        SECTION, [old], references, samples, classes=task.classes, batch_size=1024
    )


def joined(parts: Sequence[Evidence]) -> Evidence:
    """Return the evidence of several disjoint sets of samples as one."""
    olds = [part.old[0] for part in parts]
    columns = {name: torch.cat([getattr(one, name) for one in olds]) for name in ("log_p", "right", "known", "present")}
    counts = [len(part.labels) for part in parts]
    return Evidence(
        reference=torch.cat([part.reference for part in parts]),
        reference_error=float(np.average([part.reference_error for part in parts], weights=counts)),
        labels=torch.cat([part.labels for part in parts]),
        old=(replace(olds[0], **columns),),
    )


def bound(evidence: Evidence) -> float:
    """Return the error that a teacher may have."""
    return (1.0 - SECTION.margin) * evidence.reference_error


def chosen(evidence: Evidence) -> float:
    """Return the share that the rule of `compatibility.blend` takes on some samples."""
    return shares.choose(shares.front(evidence), largest_error=bound(evidence)).total


# --- the gate ---------------------------------------------------------------------------------------------------------


def features(evidence: Evidence) -> Tensor:
    """Return [N, 5]: confidence of both, the reference's entropy, whether they agree, and 1."""
    reference, old = evidence.reference, evidence.old[0].log_p
    entropy = -(reference.exp() * reference).sum(1)
    agree = (reference.argmax(1) == old.argmax(1)).double()
    columns = [reference.max(1).values.exp(), old.max(1).values.exp(), entropy, agree, torch.ones_like(agree)]
    return torch.stack(columns, 1)


def fitted_gate(evidence: Evidence) -> tuple[Callable[[Tensor], Tensor], float]:
    """Fit a gate for each `mu`, and return the one with the lowest NFR that keeps the error, and its `mu`."""
    x, old = features(evidence), evidence.old[0]
    fits = {mu: fit(evidence, x, mu=mu) for mu in MUS}
    measured = {mu: evidence.measured(right(evidence, gate(x)), shares={old.name: 0.0}) for mu, gate in fits.items()}
    mu_of = {id(found): mu for mu, found in measured.items()}
    best = mu_of[id(shares.choose(list(measured.values()), largest_error=bound(evidence)))]
    return fits[best], best


def fit(evidence: Evidence, x: Tensor, *, mu: float) -> Callable[[Tensor], Tensor]:
    """Fit a gate by L-BFGS; it gives shares in (0, 0.95)."""
    weight = nn.Parameter(torch.zeros(x.shape[1], dtype=torch.float64))
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")
    emphasis = 1.0 + mu * evidence.old[0].right.double()

    def gate(of: Tensor) -> Tensor:
        return 0.95 * torch.sigmoid(of @ weight)

    def closure() -> Tensor:
        optimizer.zero_grad()
        log_q = mixed(evidence, gate(x))
        own = log_q.gather(1, evidence.labels.clamp(min=0)[:, None])[:, 0]
        loss = -(emphasis * own).mean() + 1e-4 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return lambda of: gate(of).detach()


def mixed(evidence: Evidence, share: Tensor) -> Tensor:
    """Return [N, C] log q of a teacher with a share for each sample."""
    return blending.blended(evidence.reference, [evidence.old[0].log_p], [share])


def right(evidence: Evidence, share: Tensor) -> Tensor:
    """Return [N] bool: which samples a teacher gets right."""
    return mixed(evidence, share).argmax(1) == evidence.labels


# --- rows -------------------------------------------------------------------------------------------------------------


def row_of(update: Update, rule: str, test: Evidence, share: Tensor, *, mu: float | None) -> Row:
    """Return what a teacher gets wrong on the test split, and what the reference runs do."""
    name = test.old[0].name
    found = test.measured(right(test, share), shares={name: float(share.mean())})
    alone = test.measured(right(test, torch.zeros_like(share)), shares={name: 0.0})
    return {
        "data": update.data,
        "split": update.split,
        "seed": SEED,
        "rule": rule,
        "share": round(float(share.mean()), 3),
        "mu": mu,
        "error": 100 * found.error,
        "nfr": 100 * found.nfr[name],
        "ensemble_error": 100 * alone.error,
        "ensemble_nfr": 100 * alone.nfr[name],
        "reference_error": 100 * test.reference_error,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the means by rule, and paired differences to `held-out` with 95 % intervals over splits."""
    usual = {row["split"]: row for row in rows if row["rule"] == "held-out"}
    lines = [f"{'rule':<14}{'share':>7}{'error':>8}{'NFR':>8}{'d error to held-out':>22}{'d NFR to held-out':>20}"]
    for rule in RULES:
        own = [row for row in rows if row["rule"] == rule]
        gaps = [
            runs.mean_interval([row[key] - usual[row["split"]][key] for row in own]) if len(own) > 1 else (0.0, 0.0)
            for key in ("error", "nfr")
        ]
        share, error, nfr = (statistics.fmean(row[key] for row in own) for key in ("share", "error", "nfr"))
        lines.append(
            f"{rule:<14}{share:7.2f}{error:8.2f}{nfr:8.3f}"
            f"{gaps[0][0]:+14.2f} +-{gaps[0][1]:4.2f}{gaps[1][0]:+12.3f} +-{gaps[1][1]:5.3f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="folder that keeps versions and rows; none: thrown away")
    parser.add_argument("--splits", type=numbers, default=tuple(range(10)), help="default: 0-9")
    parser.add_argument("--quick", action="store_true", help="one split, one epoch, prints only")
    options = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        home: Path = (options.home or Path(scratch)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        file = home / "rows.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        for split in (0,) if options.quick else options.splits:
            if any(row["split"] == split for row in rows):
                continue
            found = measure(home, Update(data="glyphs", split=split, quick=options.quick))
            rows += found
            with file.open("a") as output:
                output.writelines(json.dumps(row) + "\n" for row in found)
            print(split, [(row["rule"], round(row["error"], 2), round(row["nfr"], 3)) for row in found], flush=True)
    print(table(rows))
    if not options.quick:
        print(results.write("teacher_choices", rows, seconds=time.perf_counter() - begun))


if __name__ == "__main__":
    main()
