"""What a version with adapters takes on disk and in memory, against one that keeps all weights.

    python -m benchmarks.adapters            # some minutes, writes benchmarks/results/adapters.json
    python -m benchmarks.adapters --quick    # a tiny model, prints only

The checkpoint is a BERT of the shape of MiniLM-L6 (384 wide, six layers, 30,522 tokens) with random weights. For each
kind a version is saved, and opened in a process of its own that then embeds a text. `bundle_mb` is the size of the
version's folder, `open_seconds` the time to open it after the imports, the first time on a machine and again
(`again_seconds`, when the digest of the checkpoint is known), and `anonymous_mb` how much memory of its own the process
needs for it: pages of a mapped checkpoint are shared by all processes of a machine and are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import results

KINDS: dict[str, dict[str, Any]] = {
    "whole": {},
    "lora r=8": {"peft": {"kind": "lora", "r": 8}},
    "lora r=8, query and value": {"peft": {"kind": "lora", "r": 8, "targets": ["query", "value"]}},
}
SEED = 0


def write_checkpoint(folder: Path, *, quick: bool) -> None:
    """Write a checkpoint with random weights, and a table of texts beside it."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel

    width, layers, tokens = (64, 2, 1000) if quick else (384, 6, 30_522)
    torch.manual_seed(SEED)
    config = BertConfig(
        vocab_size=tokens,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(width // 32, 1),
        intermediate_size=4 * width,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(folder / "base")
    words = {"[PAD]": 0, "[UNK]": 1, "red": 2, "blue": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.save(str(folder / "base" / "tokenizer.json"))
    texts = [f"{('red', 'blue')[number % 2]} {number}" for number in range(100)]
    pq.write_table(pa.table({"text": texts, "label": [number % 2 for number in range(100)]}), folder / "t.parquet")


def save(folder: Path, kind: str) -> Path:
    """Save a version as training would that has not begun."""
    import torch

    from graceful import spec, tasks
    from graceful.models import bundle

    network = {"kind": "transformers", "checkpoint": str(folder / "base"), **KINDS[kind]}
    section = {"kind": "table", "files": str(folder / "t.parquet"), "columns": {"text": "text"}, "network": network}
    parsed = spec.parse({"model": "benchmark", "name": "v1", "task": section})
    task = tasks.build(parsed.task)
    torch.manual_seed(SEED)
    place = folder / "versions" / kind.replace(" ", "-")
    bundle.save(place, network=task.network(task.classes), spec=parsed, classes=task.classes, task=task)
    return place


def opened(place: Path) -> dict[str, float]:
    """Open a version in this process and embed a text."""
    import peft  # noqa: F401  the imports are not what is measured
    import transformers.models.bert.modeling_bert  # noqa: F401

    from graceful.models import bundle

    before, begun = _anonymous_mb(), time.perf_counter()
    version = bundle.load(place)
    seconds = time.perf_counter() - begun
    assert version(["red"]).logits.isfinite().all()
    return {"seconds": seconds, "anonymous_mb": _anonymous_mb() - before}


def _anonymous_mb() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (kilobytes,) = (int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
    return kilobytes * 1024 / 1e6


def measured(folder: Path, kind: str) -> dict[str, object]:
    """Save a version and open it twice, each time in a process of its own."""
    place = save(folder, kind)
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    checkpoint = (folder / "base" / "model.safetensors").stat().st_size
    env = {**os.environ, "GRACEFUL_HOME": str(folder / f"home-{place.name}")}
    command = [sys.executable, "-m", "benchmarks.adapters", "--open", str(place)]
    first, again = (
        json.loads(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)
        for _ in range(2)
    )
    return {
        "version": kind,
        "checkpoint_mb": round(checkpoint / 1e6, 1),
        "bundle_mb": round(size / 1e6, 2),
        "open_seconds": round(first["seconds"], 2),
        "again_seconds": round(again["seconds"], 2),
        "anonymous_mb": round(again["anonymous_mb"], 1),
        "seed": SEED,
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open is not None:
        print(json.dumps(opened(options.open)))
        return
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["GRACEFUL_HOME"] = str(folder / "home")
        write_checkpoint(folder, quick=options.quick)
        rows = [measured(folder, kind) for kind in KINDS]
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    if not options.quick:
        print(results.write("adapters", rows, time.monotonic() - begun))


if __name__ == "__main__":
    main()
