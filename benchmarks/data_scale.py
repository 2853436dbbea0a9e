"""What tables of 10^5 to 10^8 rows cost a rank: seconds to open, memory, samples per second; and what tokenising costs.

    python -m benchmarks.data_scale            # half an hour, writes benchmarks/results/data_scale.json
    python -m benchmarks.data_scale --quick    # 10^5 rows, prints only
    python -m benchmarks.data_scale --source text   # these rows only; the others of the file stay

`table`: Parquet with a whole number as id, one number to embed, and one of four classes. The first process on a node
converts the file to Arrow, as `datasets` does (`convert_seconds`), and indexes it (`index_seconds`). Every rank then
opens it: `open_seconds` is what that takes after the imports, mean and deviation of the numbers and the first batch of
an epoch included. `rss_mb` is the most memory that a rank had while it read `BATCHES` batches, pages of mapped files
included, which the kernel takes back when it needs them; `anonymous_mb` is what of it is the process's own.

The peer reads the same Arrow file with `datasets` in torch's format, through a DataLoader with a shuffled sampler and
no workers. `text`: the collate of the text learner, rows to padded tokens, against `datasets` with the same tokenizer
in transformers and its DataCollatorWithPadding. Rounds of both alternate in one process; rates are samples per second
of CPU time of that process, which other work on the machine disturbs least; `ratio` is the median over rounds.
`jpeg`: see `benchmarks.image_decoding`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

from benchmarks import image_decoding, results

COUNTS = (10**5, 10**6, 10**7, 10**8)
BATCH, BATCHES, ROUNDS = 256, 400, 9
AT_ONCE = 2**20
TEXTS, WORDS, LONGEST = 20_000, 20_000, 128
SEED = 0


# --- data -------------------------------------------------------------------------------------------------------------


def write_table(path: Path, count: int) -> None:
    """Write the Parquet file of a table, block by block."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    generator, writer = np.random.default_rng(SEED), None
    for start in range(0, count, AT_ONCE):
        labels = generator.integers(0, 4, min(AT_ONCE, count - start)).astype(np.int8)
        columns = {
            "id": np.arange(start, start + len(labels), dtype=np.int32),
            "value": (generator.normal(size=len(labels)) + labels).astype(np.float32),
            "label": labels,
        }
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def write_texts(folder: Path) -> None:
    """Write texts of frequent and rare words, of 5 to 120 words, and a checkpoint folder with their tokenizer."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    generator = np.random.default_rng(SEED)
    letters = np.asarray(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(generator.choice(letters, size)) for size in generator.integers(2, 11, WORDS)]
    pieces = {*letters, *(f"##{letter}" for letter in letters), *words[: WORDS // 2]}
    vocabulary = {piece: number for number, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(pieces)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"model_type": "bert", "pad_token_id": 0, "vocab_size": len(vocabulary), "hidden_size": 16}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    drawn = [generator.zipf(1.2, size) % WORDS for size in generator.integers(5, 121, TEXTS)]
    texts = [" ".join(words[number] for number in numbers) for numbers in drawn]
    pq.write_table(pa.table({"text": texts, "label": [number % 2 for number in range(TEXTS)]}), folder / "t.parquet")


def task_of(folder: Path, source: str) -> Any:
    """Build the task of a table or of texts."""
    from graceful import spec, tasks

    columns = {"features": ["value"], "id": "id"} if source == "table" else {"text": "text"}
    section: dict[str, Any] = {"kind": "table", "files": str(folder / "t.parquet"), "columns": columns}
    if source == "text":
        section["network"] = {"kind": "transformers", "checkpoint": str(folder), "max_length": LONGEST}
    return tasks.build(spec.parse({"model": "scale", "name": "v1", "task": section}).task)


def peer_rows(folder: Path) -> Any:
    """Return the same file as `datasets` opens it, from the conversion that exists."""
    import datasets

    cache = str(Path(os.environ["GRACEFUL_HOME"]) / "cache" / "datasets")
    datasets.disable_progress_bars()
    return datasets.load_dataset("parquet", data_files=[str(folder / "t.parquet")], split="train", cache_dir=cache)


# --- what is measured, each in a process of its own -------------------------------------------------------------------


def indexed(folder: Path, source: str) -> dict[str, Any]:
    """Return the seconds of the first process on a node."""
    from graceful.tasks.table import source as files

    task = task_of(folder, source)
    begun = time.perf_counter()
    files.read_files([str(folder / "t.parquet")], texts=[])
    converted = time.perf_counter()
    task.samples("train")
    index = time.perf_counter() - converted
    cache = Path(os.environ["GRACEFUL_HOME"]) / "cache" / "tables"
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    seconds = {"convert_seconds": round(converted - begun, 1), "index_seconds": round(index, 1)}
    return {**seconds, "index_peak_rss_mb": memory()["rss_mb"], "index_mb": round(size / 1e6)}


def opened(folder: Path, source: str) -> dict[str, Any]:
    """Yield the seconds and memory of a rank, and samples per second beside the peer."""
    import datasets  # noqa: F401  # imports are not counted
    import pyarrow.parquet  # noqa: F401
    import torch
    from torch.utils.data import DataLoader

    from graceful.learners import learner_of
    from graceful.training.sampler import Sampler

    task = task_of(folder, source)
    before = memory()
    begun = time.perf_counter()
    train, learner = task.samples("train"), learner_of(task)
    task.samples("validation")
    sampler = Sampler(samples=len(train), batch_size=BATCH, accumulation=1, world_size=1, seed=SEED)

    def ours() -> Iterator[Any]:
        for positions in sampler.slices(0, first_step=0, rank=0):
            labels = torch.from_numpy(train.labels[positions])
            yield learner.collate(train.read(positions), None), labels

    stream = ours()
    next(stream)
    seconds = time.perf_counter() - begun
    peak, steps = memory(), min(BATCHES, sampler.steps_per_epoch - 1)
    for _ in range(steps // 2):
        next(stream)
        peak = {name: max(value, peak[name]) for name, value in memory().items()}
    row = {
        "train_rows": len(train),
        "open_seconds": round(seconds, 2),
        "imports_rss_mb": before["rss_mb"],
        **peak,
    }
    rows = peer_rows(folder).with_format("torch")
    begun = time.perf_counter()
    loader = iter(DataLoader(rows.select_columns(["value", "label"]), batch_size=BATCH, shuffle=True))
    next(loader)
    row |= {"peer_first_batch_seconds": round(time.perf_counter() - begun, 2), "peer_rss_mb": memory()["rss_mb"]}
    return {**row, **rates(lambda: next(stream), lambda: next(loader), steps=max(steps // (2 * ROUNDS) - 1, 1))}


def tokenised(folder: Path, source: str) -> dict[str, Any]:
    """Return the samples per second from rows to padded tokens, beside the peer."""
    from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

    task = task_of(folder, source)
    train = task.samples("train")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]", model_max_length=LONGEST
    )
    collator = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)
    rows = peer_rows(folder)
    generator = np.random.default_rng(SEED)
    chosen = [generator.integers(0, len(train), BATCH) for _ in range(64)]
    places = {"ours": 0, "peer": 0}

    def positions(who: str) -> Any:
        places[who] += 1
        return chosen[places[who] % len(chosen)]

    def ours() -> object:
        return task.learner.collate(train.read(positions("ours")), None)

    def peer() -> object:
        encoded = tokenizer(rows[positions("peer").tolist()]["text"], truncation=True)
        return collator([{name: encoded[name][row] for name in encoded} for row in range(BATCH)])

    return {"train_rows": len(train), **rates(ours, peer, steps=10)}


def rates(ours: Callable[[], object], peer: Callable[[], object], *, steps: int) -> dict[str, Any]:
    """Return the samples per second of CPU time of both, in rounds that alternate."""
    measured: dict[str, list[float]] = {"ours": [], "peer": []}
    for number in range(ROUNDS + 1):
        for name, step in (("ours", ours), ("peer", peer))[:: 1 if number % 2 else -1]:
            begun = time.process_time()
            for _ in range(steps):
                step()
            measured[name].append(steps * BATCH / (time.process_time() - begun))
    mine, theirs = measured["ours"][1:], measured["peer"][1:]  # the first round warms up
    return {
        "samples_per_second": round(statistics.median(mine)),
        "peer_samples_per_second": round(statistics.median(theirs)),
        "ratio": round(statistics.median(one / other for one, other in zip(mine, theirs, strict=True)), 2),
    }


def memory() -> dict[str, int]:
    """Return in MB the most that the process has held, and what of it no file backs now."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    numbers = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith(("VmHWM", "RssAnon"))}
    return {"rss_mb": int(numbers["VmHWM"]) * 1024 // 10**6, "anonymous_mb": int(numbers["RssAnon"]) * 1024 // 10**6}


PARTS = {"indexed": indexed, "opened": opened, "tokenised": tokenised}


def part(name: str, folder: Path, source: str) -> dict[str, Any]:
    """Measure one part in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.data_scale",
        "--part",
        name,
        "--folder",
        str(folder),
        "--source",
        source,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ))
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def measured(source: str, count: int) -> dict[str, Any]:
    """Make the data, measure, and delete it."""
    folder = Path(tempfile.mkdtemp(prefix="data-scale-"))
    os.environ["GRACEFUL_HOME"] = str(folder / "home")
    try:
        if source == "text":
            write_texts(folder)
            row = part("indexed", folder, source) | part("tokenised", folder, source)
        else:
            write_table(folder / "t.parquet", count)
            row = part("indexed", folder, source) | part("opened", folder, source)
    finally:
        shutil.rmtree(folder)
    return {"source": source, "rows": count, "seed": SEED, "batch": BATCH, "commit": results.commit(), **row}


def kept(sources: Mapping[str, object]) -> list[dict[str, Any]]:
    """Return rows of other sources that were measured before."""
    path = results.FOLDER / "data_scale.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return [row for row in rows if row["source"] not in sources]


def main() -> None:
    """Measure every size, or one part for the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10^5 rows, prints only")
    parser.add_argument("--source", choices=("table", "text", "jpeg"), help="only these rows")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options.folder, options.source)))
        return
    begun = time.monotonic()
    wanted = {"table": COUNTS[:1] if options.quick else COUNTS, "text": (TEXTS,)}
    wanted |= dict(image_decoding.COUNTS)
    if options.source:
        wanted = {source: counts for source, counts in wanted.items() if source.startswith(options.source)}
    rows = []
    for source, counts in wanted.items():
        for count in counts:
            images = source in image_decoding.SIDES
            rows.append(image_decoding.measured(source) if images else measured(source, count))
            print(rows[-1], flush=True)
    if not options.quick:
        results.write("data_scale", [*rows, *kept(wanted)], time.monotonic() - begun)


if __name__ == "__main__":
    main()
