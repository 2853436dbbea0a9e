"""What does a trial cost beyond its training, and does a search survive kill -9?

    python -m benchmarks.search_overhead            # 24 trials of glyphs_flips' update, about 8 minutes on two cores;
                                                    # writes benchmarks/results/search_overhead.json
    python -m benchmarks.search_overhead --quick    # 6 trials of one epoch, prints only

Three runs of the same trials: `bare` calls the training function in as many plain processes as there are trials at a
time, `search` is the search through Ray Tune, and `resumed` is the search whose driver is killed (SIGKILL) after a
third of its trials and started again. Seconds per trial are wall seconds times trials at a time over trials, from the
first trial's start to the last one's end; what starting costs (Ray, imports, once per search) has a column of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from benchmarks import results, runs
from benchmarks.glyphs_flips import NEW, OLD, RECIPE
from graceful import spec as specs
from graceful.programs.runs.run import Run
from graceful.programs.tuning import fits, space
from graceful.programs.tuning.bench import Bench
from graceful.programs.tuning.search import search
from graceful.programs.tuning.study import Study, Tried

AT_ONCE = 2
OWED = {
    "losses": [{"kind": "focal_distillation", "temperature": 2, "allow_low_temperature": True, "weight": 5}],
    "reference": {"runs": 1, "weight": 10},
}


def bench_of(home: Path, name: str, *, trials: int, epochs: int) -> tuple[Bench, Study]:
    """Return a search with a folder of its own; reference runs and caches are shared."""
    train = {"num_workers": 0, "engine": {"kind": "torch"}, "seed": 7, "epochs": epochs}
    section = {"trials": trials, "max_concurrent": AT_ONCE, "sampler": "random", "space": {"runs": [1]}}
    document = {"model": "bench", "name": "new", "task": NEW, "train": train, "compatibility": OWED, "tune": section}
    spec = specs.parse(document)
    assert spec.tune is not None
    bench = Bench(
        spec=spec,
        task=runs.task_of(NEW),
        folder=home / f"fits-{name}",
        home=home,
        ancestors=tuple(Run.of(spec, home=home).chain([home / "old" / "model"])),
        tune=spec.tune,
        references=1,
    )
    study = Study(home / f"{name}.jsonl", tune=spec.tune, space=space.parameters(spec), seed=7)
    return bench, study


def searched(home: Path, name: str, trials: int, epochs: int) -> None:
    """A driver: search, and note when trials began and ended."""
    bench, study = bench_of(home, name, trials=trials, epochs=epochs)
    log = (home / f"{name}.times").open("a")

    def told(tried: Tried) -> None:
        log.write(json.dumps([time.time(), tried.record.get("seconds"), tried.state]) + "\n")
        log.flush()

    search(bench, study, listener=told, progress=lambda row: None)


def one(told: dict[str, Any]) -> tuple[float, float]:
    """Return a bare fit: when it began and ended."""
    began = time.time()
    fits.fit(told)
    return began, time.time()


def bare(home: Path, trials: int, epochs: int) -> tuple[float, float]:
    """Return the same points without a search; seconds per trial, and seconds until the first trial began."""
    bench, _ = bench_of(home, "bare", trials=trials, epochs=epochs)
    points = [tried.point for tried in bench_of(home, "search", trials=trials, epochs=epochs)[1].trials()]
    works = [bench.work(point, seed=7, on="search").document() for point in points if point]
    started = time.time()
    with multiprocessing.get_context("spawn").Pool(AT_ONCE) as pool:
        times = pool.map(one, works, chunksize=1)
    first = min(began for began, _ in times)
    return per_trial([first, *(ended for _, ended in times)], len(works)), first - started


def per_trial(times: list[float], trials: int) -> float:
    """Return the seconds of a trial, of `AT_ONCE` at a time."""
    return AT_ONCE * (max(times) - min(times)) / trials


def timed(home: Path, name: str, trials: int, epochs: int, *, kill_after: int | None = None) -> dict[str, Any]:
    """Run a driver to its end, or kill it after so many trials and start it again."""
    context = multiprocessing.get_context("spawn")
    times_file, started, starts, killed = home / f"{name}.times", time.time(), 0, False
    before: dict[str, int] = {}
    while True:
        driver = context.Process(target=searched, args=(home, name, trials, epochs))
        driver.start()
        starts += 1
        while driver.is_alive():
            driver.join(0.05)
            if kill_after is not None and not killed and len(ended(times_file)) >= kill_after:
                os.kill(int(driver.pid or 0), signal.SIGKILL)
                driver.join()
                killed, before = True, finished(home, name)
        if driver.exitcode == 0:
            break
        if not killed or starts > 2:
            raise SystemExit(f"driver of {name} ended with {driver.exitcode}")
    print(f"{name}: {time.time() - started:.1f} s, {starts} drivers", flush=True)
    _, study = bench_of(home, name, trials=trials, epochs=epochs)
    after = finished(home, name)
    rows = [json.loads(line) for line in times_file.read_text().splitlines()]
    first = min(at - seconds for at, seconds, state in rows if state != "running")
    last = max(at for at, _, state in rows if state != "running")
    return {
        "seconds_per_trial": AT_ONCE * (last - first) / trials,
        "start_seconds": first - started,
        "starts": starts,
        "trials": study.ended(),
        "lost": sum(1 for fit in before if fit not in after),
        "repeated": sum(1 for fit, at in before.items() if after.get(fit) != at),
        "fits": len(after),
    }


def ended(times_file: Path) -> list[str]:
    """Return the lines of trials that ended."""
    text = times_file.read_text() if times_file.exists() else ""
    return [line for line in text.splitlines() if '"complete"' in line or '"failed"' in line]


def finished(home: Path, name: str) -> dict[str, int]:
    """Fits that are finished -> when."""
    return {path.parent.name: path.stat().st_mtime_ns for path in home.glob(f"fits-{name}/*/search-fit.json")}


def main() -> None:
    """Measure all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few short trials, nothing written")
    options = parser.parse_args()
    trials, epochs = (6, 1) if options.quick else (24, RECIPE["epochs"])
    started, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch).resolve()
        spec = runs.refresh_spec("old", task=OLD, seed=7, train={"epochs": epochs})
        runs.trained(spec, folder=home / "old", task=runs.task_of(OLD))
        timed(home, "warm", 2, epochs)  # the caches that all runs share
        found = {"search": timed(home, "search", trials, epochs)}
        seconds, start = bare(home, trials, epochs)
        found["resumed"] = timed(home, "resumed", trials, epochs, kill_after=trials // 3)
        rows.append({"run": "bare", "trials": trials, "seconds_per_trial": seconds, "start_seconds": start})
        rows += [{"run": name, **row} for name, row in found.items()]
    for row in rows:
        row["bare_seconds"], row["ratio"] = seconds, row["seconds_per_trial"] / seconds
        row["trials_per_minute"] = 60 * AT_ONCE / row["seconds_per_trial"]
        shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
        row.update(shown)
        print(json.dumps(shown))
    if not options.quick:
        print(results.write("search_overhead", rows, seconds=time.perf_counter() - started))


if __name__ == "__main__":
    main()
