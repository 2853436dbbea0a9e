"""Ten versions of glyphs, one of them released untreated: which policy keeps the chain, and at what error?

    python -m benchmarks.chain_policies            # 3 seeds x 8 policies x 10 versions, about an hour on two cores
    python -m benchmarks.chain_policies --policies none,latest,blend    # these again; rows of the others stay
    python -m benchmarks.chain_policies --quick    # 1 seed, 4 versions, 1 epoch, prints only
    python -m benchmarks.chain_policies --home DIR # keep runs in DIR: finished ones are not trained again

Data grow from version to version, the network once. Every policy trains its own chain; the version in the middle is
trained without constraints in all of them. Policies:

    none                 no constraints
    latest               against the newest predecessor
    all, decay           against all, equal shares or shares that halve with each release
    adaptive             budgets (`compatibility.weighting`), and distillation from three unconstrained runs
    adaptive-alone       the same without these runs
    latest-reference     latest with these runs
    blend                against all, with `compatibility.blend` and its defaults: three of these runs, twice the epochs

Errors and flips are those on test families. A budget is met where the NFR is at most the bound: on the constraint
split, on which it was declared and by which multipliers move, and on test families. For the adaptive policies these are
the budgets they were trained with; for the others the same rule is applied to their own chain afterwards, with the
`none` run of the same seed and version as the unconstrained one.

Settings were chosen on validation families with seeds 11 to 13 and chains of six versions, among rho 0.15 to 0.20,
steps 0.5 and 1, starts 1 to 3, reference weights 1 and 3. Other settings had been seen on test families before, with
seed 0 and six versions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks import results, runs
from graceful import spec
from graceful.chain import Predecessor
from graceful.chain.budgets import Budget, Status
from graceful.programs.fitting.train import train
from graceful.programs.preparation.contract import Unconstrained, ask, contract
from graceful.programs.runs.run import Run
from graceful.tasks.base import Task

SEEDS, VERSIONS = (0, 1, 2), 10
LOSS = {
    "kind": "focal_distillation",
    "focus": "all",
    "beta": 0.0,
    "temperature": 2.0,
    "allow_low_temperature": True,
    "weight": 0.3,
}
ADAPTIVE = {
    "kind": "adaptive",
    "relative": 0.2,
    "step": 1.0,
    "start": 3.0,
    "error_margin": 0.06,
    "infeasible": "skip",
}
REFERENCE = {"runs": 3, "weight": 3.0, "temperature": 2.0}
POLICIES: Mapping[str, dict[str, Any]] = {
    "none": {},
    "latest": {"losses": [LOSS], "against": "latest"},
    "all": {"losses": [LOSS], "against": "all"},
    "decay": {"losses": [LOSS], "against": "all", "weighting": {"kind": "decay"}},
    "adaptive": {"losses": [LOSS], "against": "all", "weighting": ADAPTIVE, "reference": REFERENCE},
    "adaptive-alone": {"losses": [LOSS], "against": "all", "weighting": ADAPTIVE},
    "latest-reference": {"losses": [{**LOSS, "weight": 1.0}], "against": "latest", "reference": REFERENCE},
    "blend": {"blend": {}, "against": "all"},
}


def task_section(version: int, versions: int) -> dict[str, Any]:
    """Return what version 1, 2, ... learns: from 30 % of the families to all, the wider network from the middle on."""
    share = 0.3 + 0.7 * (version - 1) / max(versions - 1, 1)
    network = {"size": "s2" if version > versions // 2 else "xs", "embedding": 64, "head": "cosine"}
    return {"kind": "glyphs", "fonts": round(share, 4), "network": network}


def chains(seed: int, versions: int, epochs: int, home: str, policies: Sequence[str]) -> list[dict[str, Any]]:
    """Train the chain of every policy with one seed, `none` first; one row for each policy and version."""
    rows: list[dict[str, Any]] = []
    free: dict[int, Predecessor] = {}
    for policy in policies:
        bundles: list[Path] = []
        loaded: list[Predecessor] = []
        for version in range(1, versions + 1):
            untreated = version in (1, versions // 2 + 1)
            what = task_section(version, versions)
            task = runs.task_of(what)
            wanted = runs.refresh_spec(
                f"{policy}-s{seed}-v{version}",
                task=what,
                seed=1000 * seed + version,
                train={"epochs": epochs},
                compatibility={} if untreated else POLICIES[policy],
            )
            before = runs.cpu_seconds()
            run = Run.of(wanted, home=Path(home), folder=Path(home) / "runs" / wanted.name)
            done = train(run, ancestors=run.chain(bundles), task=task)
            seconds = runs.cpu_seconds() - before
            new = runs.load(done.folder)
            if policy == "none":
                free[version] = new
            budgets = done.contract.budgets if done.contract else planned(task, loaded, free[version])
            test, constraint = (
                {old.name: runs.flips(new, old, task=task, split=split)["nfr"] for old in loaded}
                for split in ("test", "constraint")
            )
            rows.append(
                {
                    "policy": policy,
                    "seed": seed,
                    "version": version,
                    "untreated": untreated or policy == "none",
                    **row_of(test, budgets, constraint=constraint),
                    "error": round(100 * float(1 - runs.right(new, task, "test").mean()), 4),
                    "chosen_epoch": done.result.chosen_epoch,
                    "cpu_seconds": round(seconds, 2),
                }
            )
            bundles.insert(0, done.folder)
            loaded.insert(0, new)
    return rows


def planned(task: Task, chain: Sequence[Predecessor], free: Predecessor) -> tuple[Budget, ...]:
    """Return the budgets that the adaptive rule would give a chain."""
    if not chain:
        return ()
    rule = spec.Adaptive.model_validate(ADAPTIVE)
    run = Unconstrained(version=free, errors=())
    return contract(rule, ask(task, chain, batch_size=1024), references=[run]).budgets


def row_of(test: Mapping[str, float], budgets: Sequence[Budget], *, constraint: Mapping[str, float]) -> dict[str, Any]:
    """Return what one version of a chain flipped: rates in percent, budgets by the number of the predecessor."""
    nfr, controlled = ({_number(name): round(rate, 4) for name, rate in found.items()} for found in (test, constraint))
    feasible = {_number(one.name): 100 * one.bound for one in budgets if one.status is not Status.INFEASIBLE}
    return {
        "max_nfr": max(nfr.values(), default=None),
        "nfr_by_predecessor": nfr,
        "budgets": {name: round(bound, 4) for name, bound in feasible.items()},
        "status": {_number(one.name): str(one.status) for one in budgets},
        "budgets_feasible": len(feasible),
        "budgets_met": sum(nfr[name] <= bound for name, bound in feasible.items()),
        "budgets_met_on_constraint": sum(controlled[name] <= bound + 1e-4 for name, bound in feasible.items()),
    }


def _number(name: str) -> str:
    return name.rpartition("-")[2]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """By policy: the last version, and the mean over the versions after the untreated one, with paired differences."""
    last = max(row["version"] for row in rows)
    broken = last // 2 + 1
    lines = [
        f"{'policy':<18}{'error':>7}{'max NFR':>9}{'d error':>17} | "
        f"{'after the untreated release: error':>34}{'max NFR':>9}"
        f"{'d max NFR':>17}{'met, constraint':>18}{'met, test':>14}"
    ]
    latest = {(row["seed"], row["version"]): row for row in rows if row["policy"] == "latest"}

    def difference(own: Sequence[Mapping[str, Any]], key: str) -> str:
        by_seed: dict[int, list[float]] = {}
        for row in own:
            by_seed.setdefault(row["seed"], []).append(row[key] - latest[row["seed"], row["version"]][key])
        gap, half = runs.mean_interval([statistics.fmean(values) for values in by_seed.values()])
        return f"{gap:>+9.2f} +-{half:5.2f}"

    for policy in (one for one in POLICIES if any(row["policy"] == one for row in rows)):
        own = [row for row in rows if row["policy"] == policy]
        end, after = ([row for row in own if row["version"] >= first] for first in (last, min(broken + 1, last)))
        met, there, asked = (
            sum(row[key] for row in after) for key in ("budgets_met", "budgets_met_on_constraint", "budgets_feasible")
        )
        lines.append(
            f"{policy:<18}{_mean(end, 'error'):>7.2f}{_mean(end, 'max_nfr'):>9.2f}{difference(end, 'error'):>17} | "
            f"{_mean(after, 'error'):>34.2f}{_mean(after, 'max_nfr'):>9.2f}{difference(after, 'max_nfr'):>17}"
            f"{there:>11} of {asked:<3}{met:>7} of {asked:<3}"
        )
    return "\n".join(lines)


def merged(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the recorded rows with those of the measured policies in place of theirs.

    Raises:
        ValueError: Chains without constraints are not those of the recorded rows, which then cannot be compared.
    """
    recorded = json.loads((results.FOLDER / "chain_policies.json").read_text(encoding="utf-8"))["rows"]
    errors = [
        {(row["seed"], row["version"]): row["error"] for row in some if row["policy"] == "none"}
        for some in (rows, recorded)
    ]
    measured = {row["policy"] for row in rows}
    if errors[0] != errors[1] and measured != set(POLICIES):
        raise ValueError("policy none gives other versions than those recorded; measure all policies")
    both = [*rows, *(row for row in recorded if row["policy"] not in measured)]
    return [row for policy in POLICIES for row in both if row["policy"] == policy]


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, four versions, one epoch, nothing written")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--policies", default=",".join(POLICIES), help="must hold none; default: %(default)s")
    parser.add_argument("--home", help="folder that keeps the runs; none: they are thrown away")
    options = parser.parse_args()
    seeds, versions, epochs = ((0,), 4, 1) if options.quick else (SEEDS, VERSIONS, 6)
    policies = tuple(policy for policy in POLICIES if policy in options.policies.split(","))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(options.home or scratch)
        work = [(seed, versions, epochs, str(home / f"seed-{seed}"), policies) for seed in seeds]
        if options.workers == 1 or len(work) == 1:
            found = [chains(*one) for one in work]
        else:
            with multiprocessing.get_context("spawn").Pool(options.workers, maxtasksperchild=1) as pool:
                found = pool.starmap(chains, work, chunksize=1)
    rows = [row for part in found for row in part]
    assert np.isfinite([row["error"] for row in rows]).all()
    print(table(rows))
    if not options.quick:
        print(results.write("chain_policies", merged(rows), seconds=time.perf_counter() - start))


if __name__ == "__main__":
    main()
