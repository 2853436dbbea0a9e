"""Do changes of the code leave what is trained exactly as it was? Short refreshes, compared bit by bit with a record.

python -m benchmarks.golden_traces            compare every case with benchmarks/results/golden_traces.json
python -m benchmarks.golden_traces --record   train every case and write that file
    --only torch-0,wine     of some cases; the rows of others stay

A case refreshes several versions of one model in a registry of its own. Its rows hold the SHA-256 of all losses and
gradient norms and of the weights, so two rows are equal only if training was equal in every bit. Floating-point results
depend on the processor, so a record is comparable on processors of the same kind only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import results
from graceful.errors import EXIT_HELD

JOBS = Path("jobs")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Versions of one model, refreshed one after the other.

    Attributes:
        name: What `--only` selects it by.
        specs: Files of specs below `jobs/`, or YAML texts.
        settings: `--set` values of every version.
    """

    name: str
    specs: tuple[str, ...]
    settings: tuple[str, ...] = ()


def cases() -> list[Case]:
    """Return all cases: the glyphs chain on each engine and number of workers, budgets, a user's task, images, every
    loss."""
    glyphs = ("glyphs/v1.yaml", "glyphs/v2.yaml", "glyphs/v3.yaml")
    engines = {"torch": "{kind: torch}"} | {
        f"zero{stage}": f"{{kind: deepspeed, zero_stage: {stage}}}" for stage in range(4)
    }
    short = ("train.epochs=1", "train.batch_size=32", "task.fonts=0.1", "gate.constraints=[]")
    chain = [
        Case(
            name=f"{name}-{workers}",
            specs=glyphs,
            settings=(*short, f"train.num_workers={workers}", f"train.engine={engine}"),
        )
        for name, engine in engines.items()
        for workers in (0, 1, 2)
    ]
    alone = ("train.num_workers=0", "train.engine={kind: torch}")
    return [
        *chain,
        Case(name="chain", specs=(*glyphs, "glyphs/chain.yaml"), settings=(*short, *alone)),
        Case(name="wine", specs=("wine/v1.yaml", "wine/v2.yaml")),
        Case(name="images", specs=(image_spec("v1", 16, ""), image_spec("v2", 24, IMAGE_LOSSES))),
        Case(name="losses", specs=("wine/v1.yaml", *(wine_spec(name, loss) for name, loss in WINE_LOSSES.items()))),
    ]


IMAGE_LOSSES = """
compatibility:
  against: all
  losses:
    - {kind: focal_distillation, weight: 0.3}
    - {kind: embedding_regression, weight: 1.0, distance: l2}
"""

WINE_LOSSES = {
    "lm": "[{kind: focal_distillation, form: lm, weight: 1.0}]",
    "dynamic": "[{kind: focal_distillation, focus: negative_flip}, {kind: influence}]",
    "ldi": "[{kind: logit_displacement, top_k: 2, exclude_label: true}, {kind: embedding_regression}]",
    "reweighting": "[{kind: reweighting, weight: 2.0}]",
    "decay": "[{kind: focal_distillation, focus: all}, {kind: embedding_regression, distance: l2}]\n"
    "  weighting: {kind: decay, factor: 0.5}\n  reference: {runs: 2}",
}
"""By version, in the order of refreshing: each is trained against all that came before it."""


def wine_spec(name: str, losses: str) -> str:
    """Return the spec of a version of wine whose predecessors are all that came before."""
    return (JOBS / "wine/v1.yaml").read_text().replace("name: v1", f"name: {name}").replace(
        "file: task.py", f"file: {(JOBS / 'wine/task.py').resolve()}"
    ) + f"compatibility:\n  against: all\n  losses: {losses}\n"


def image_spec(name: str, embedding: int, rest: str) -> str:
    """Return the spec of a version on the drawn images, augmented by shifts and flips, with keyed targets."""
    return f"""
model: drawings
name: {name}
task:
  kind: image_folder
  root: IMAGES
  size: 16
  shift: 2
  flip: true
  network: {{size: xs, embedding: {embedding}}}
train: {{epochs: 3, batch_size: 32, num_workers: 0, engine: {{kind: torch}}}}
gate: {{constraints: []}}
{rest}"""


def draw_images(root: Path) -> None:
    """Write 3 classes of 60 PNG images: stripes across, stripes down, noise; seeded."""
    rng = np.random.default_rng(0)
    for name in ("across", "down", "noise"):
        (root / name).mkdir(parents=True)
        for number in range(60):
            pixels = rng.integers(0, 128, (20, 24, 3), dtype=np.uint8)
            pixels[:: 2 if name == "across" else 20] += np.uint8(100)
            pixels[:, :: 2 if name == "down" else 24] += np.uint8(100)
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")


def rows_of(case: Case, folder: Path) -> Iterator[dict[str, object]]:
    """Refresh the versions of a case and describe each one's training.

    Raises:
        RuntimeError: A refresh ended otherwise than passed or held; the message holds its last lines.
    """
    images = folder / "images"
    if any("IMAGES" in text for text in case.specs):
        draw_images(images)
    env = {**os.environ, "GRACEFUL_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    for number, text in enumerate(case.specs):
        path = JOBS / text
        if "\n" in text:
            path = folder / f"{number}.yaml"
            path.write_text(text.replace("IMAGES", str(images)))
        options = [part for setting in case.settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "graceful.cli", "refresh", str(path), "--quiet", *options]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode not in (0, EXIT_HELD):
            raise RuntimeError(f"{case.name}: {' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
        newest = max((folder / "home" / "runs").iterdir(), key=lambda run: (run / "result.json").stat().st_mtime_ns)
        yield {"case": case.name, "version": newest.name, **describe(newest)}


def describe(run: Path) -> dict[str, object]:
    """Digests of a run's losses and weights, with the number of steps and the last loss for people to read."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if line["event"] == "step"}
    trace = [(step, float(line["loss"]).hex(), float(line["grad_norm"]).hex()) for step, line in sorted(steps.items())]
    weights = hashlib.sha256((run / "model" / "model.safetensors").read_bytes())
    return {
        "steps": len(trace),
        "last_loss": steps[max(steps)]["loss"],
        "trace_sha256": hashlib.sha256(json.dumps(trace).encode()).hexdigest(),
        "weights_sha256": weights.hexdigest(),
    }


def trained(chosen: Sequence[Case]) -> list[dict[str, object]]:
    """Train cases in temporary folders, one line of progress for each version."""
    rows = []
    for case in chosen:
        with tempfile.TemporaryDirectory() as folder:
            for row in rows_of(case, Path(folder)):
                print(f"{case.name:>10} {row['version']!s:>16} {row['steps']:>5} steps, last loss {row['last_loss']}")
                sys.stdout.flush()
                rows.append(row)
    return rows


def differences(rows: Sequence[Mapping[str, object]], recorded: Sequence[Mapping[str, object]]) -> list[str]:
    """Say which rows differ from the record, or are missing there."""
    known = {(row["case"], row["version"]): row for row in recorded}
    lines = []
    for row in rows:
        before = known.get((row["case"], row["version"]))
        if before != row:
            lines.append(f"{row['case']} {row['version']}: recorded {before}, trained {dict(row)}")
    return lines


def main(arguments: list[str]) -> int:
    """Record, or compare and return 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="Write the record in place of comparing with it.")
    parser.add_argument("--only", default="", help="Names of cases, separated by commas.")
    options = parser.parse_args(arguments)
    wanted = set(filter(None, options.only.split(",")))
    chosen = [case for case in cases() if not wanted or case.name in wanted]
    start = time.monotonic()
    rows = trained(chosen)
    path = results.FOLDER / "golden_traces.json"
    recorded = json.loads(path.read_text()) if path.exists() else {"rows": [], "hardware": results.hardware()}
    if options.record:
        names = {case.name for case in chosen}
        kept = [row for row in recorded["rows"] if row["case"] not in names]
        print("wrote", results.write("golden_traces", [*kept, *rows], time.monotonic() - start).name)
        return 0
    if recorded["hardware"] != results.hardware():
        print(f"recorded on {recorded['hardware']}, this is {results.hardware()}: differences may come from there")
    lines = differences(rows, recorded["rows"])
    print("\n".join(lines) or f"{len(rows)} versions of {len(chosen)} cases: equal bit for bit")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
