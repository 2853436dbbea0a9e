"""Texts of words, classified by which words prevail. Batches are mappings of integer tensors.

A few texts are empty, and masked. Each version numbers the words that it met in its own training texts, so versions of
a chain have other vocabularies.
Queries and galleries have encoders of their own, and training drops words as a function of the view.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from graceful.models.base import Outputs
from graceful.tasks import in_split
from graceful.tasks.base import Samples

WORDS, LENGTH = 60, 12
CLASSES = ("animals", "plants", "stones")
UNKNOWN = 1
EMPTY = 0.03


class Network(nn.Module):
    """Mean of word embeddings, a layer for queries, a head."""

    def __init__(self, words: int, width: int, classes: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(words, width, padding_idx=0)
        self.query = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def classify(self, embedding):
        return self.head(embedding)


class TokenLearner:
    encoders = ("query", "gallery")

    def __init__(self, vocabulary) -> None:
        self.vocabulary = list(vocabulary)
        self.numbers = {word: number for number, word in enumerate(self.vocabulary, start=UNKNOWN + 1)}

    @property
    def size(self):
        return len(self.vocabulary) + UNKNOWN + 1

    def assets(self):
        return {"vocabulary.json": self.vocabulary}

    def restored(self, assets):
        return TokenLearner(assets["vocabulary.json"])

    def collate(self, items, views):
        ids = torch.zeros(len(items), LENGTH, dtype=torch.int64)
        for row, text in enumerate(items):
            numbers = [self.numbers.get(word, UNKNOWN) for word in str(text).split()]
            ids[row, : len(numbers)] = torch.tensor(numbers)
        mask = ids > 0
        if views is not None:
            dropped = torch.stack([torch.from_numpy(np.random.default_rng(int(v)).random(LENGTH)) < 0.2 for v in views])
            mask &= ~dropped | (torch.arange(LENGTH) == 0)  # an empty text stays empty
        return {"text": {"ids": ids, "mask": mask}}

    def forward(self, network, batch, *, encoder):
        text = batch["text"]
        vectors = network.tokens(text["ids"]) * text["mask"].unsqueeze(-1)
        mean = vectors.sum(1) / text["mask"].sum(1, keepdim=True).clamp(min=1)
        embedding = mean + 0.1 * network.query(mean) if encoder == "query" else mean
        return Outputs(embedding, network.head(embedding), text["mask"].any(1))

    def task_loss(self, outputs, batch, labels):
        return F.cross_entropy(outputs.logits, labels, reduction="none", label_smoothing=0.05)


class Sequences:
    classes = CLASSES
    augments = True

    def __init__(self, width: int, share: float) -> None:
        self.width = width
        rng = np.random.default_rng(0)
        count = 900
        self.labels = rng.integers(0, len(CLASSES), count)
        own = 1 + self.labels[:, None] * 19 + rng.integers(0, 19, (count, LENGTH))
        noise = rng.integers(1, WORDS, (count, LENGTH))
        words = np.where(rng.random((count, LENGTH)) < 0.45, own, noise)
        lengths = np.where(rng.random(count) < EMPTY, 0, rng.integers(4, LENGTH + 1, count))
        texts = [" ".join(f"w{word}" for word in row[:length]) for row, length in zip(words, lengths, strict=True)]
        self.items = np.array(texts)
        self.ids = np.array([f"text-{row}" for row in range(count)])
        training = self.items[in_split(self.ids, "train")]
        known = " ".join(training[: int(share * len(training))]).split()
        self.learner = TokenLearner(dict.fromkeys(known))

    def network(self, classes):
        return Network(self.learner.size, self.width, len(classes))

    def samples(self, split):
        mine = in_split(self.ids, split)
        return Samples.of(self.items[mine], self.labels[mine], classes=self.classes, ids=self.ids[mine])


def task(width: int = 16, share: float = 1.0) -> Sequences:
    return Sequences(width, share)
