"""Losses written a second time from their formulas, in NumPy extended precision, sample by sample. Tests only.

They share nothing with graceful.losses: textbook forms, plain loops, no tricks. Slow on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, localcontext

import numpy as np

LONG = np.longdouble


def log_softmax(z):
    z = np.asarray(z, LONG)
    shifted = z - z.max()
    return shifted - np.log(np.exp(shifted).sum())


def kl(new, old, temperature):
    """[B]: tau^2 * sum_c p_old (log p_old - log p_new); 40 digits for few classes, where values can be tiny."""
    if np.shape(new)[1] <= 10:
        return np.array([exact_kl(n, o, temperature) for n, o in zip(new, old, strict=True)])
    out = []
    for n, o in zip(np.asarray(new, LONG), np.asarray(old, LONG), strict=True):
        log_p, log_q = log_softmax(n / LONG(temperature)), log_softmax(o / LONG(temperature))
        out.append(LONG(temperature) ** 2 * (np.exp(log_q) * (log_q - log_p)).sum())
    return np.array(out, np.float64)


def exact_kl(new, old, temperature):
    with localcontext() as context:
        context.prec = 40
        tau = Decimal(float(temperature))

        def log_probabilities(logits):
            scaled = [Decimal(float(z)) / tau for z in logits]
            total = sum(z.exp() for z in scaled).ln()
            return [z - total for z in scaled]

        log_p, log_q = log_probabilities(new), log_probabilities(old)
        return float(tau**2 * sum(b.exp() * (b - a) for a, b in zip(log_p, log_q, strict=True)))


def kl_gradient(new, old, temperature):
    """[B, C]: tau * (p_new - p_old), gradient of each sample's divergence in its new logits."""
    out = []
    for n, o in zip(np.asarray(new, LONG), np.asarray(old, LONG), strict=True):
        p, q = np.exp(log_softmax(n / LONG(temperature))), np.exp(log_softmax(o / LONG(temperature)))
        out.append(LONG(temperature) * (p - q))
    return np.array(out, np.float64)


def lm(new, old):
    """[B]: (1 / 2C) || centre(new - old) ||^2."""
    out = []
    for n, o in zip(np.asarray(new, np.float64), np.asarray(old, np.float64), strict=True):
        d = n - o
        out.append(sum((x - d.mean()) ** 2 for x in d) / (2 * len(d)))
    return np.array(out)


def displacement(new, old, *, margin, power, top_k=None, labels=None):
    """[B]: mean over the chosen classes of max(0, |difference| - margin)^power."""
    out = []
    for i, (n, o) in enumerate(zip(new, old, strict=True)):
        chosen = [c for c in range(len(n)) if labels is None or c != labels[i]]
        if top_k is not None:
            chosen = sorted(chosen, key=lambda c: -o[c])[:top_k]
        terms = [max(0.0, abs(float(n[c]) - float(o[c])) - margin) ** power for c in chosen]
        out.append(sum(terms) / len(terms) if terms else 0.0)
    return np.array(out)


def cross_entropy(logits, labels):
    """[B]"""
    return np.array([-float(log_softmax(z)[y]) for z, y in zip(logits, labels, strict=True)])


def aligned(embedding, size):
    """[B, size]: sliced or zero-padded."""
    e = np.asarray(embedding, np.float64)
    out = np.zeros((len(e), size))
    width = min(size, e.shape[1])
    out[:, :width] = e[:, :width]
    return out


def cosine(a, b):
    """[B]; zero vectors have cosine 0."""
    out = []
    for x, y in zip(np.asarray(a, np.float64), np.asarray(b, np.float64), strict=True):
        length = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
        out.append(float(x @ y) / length if length > 0 else 0.0)
    return np.array(out)


def shared_logits(new, old, label_map: Sequence[int]):
    """New and old logits over the old classes that some new class maps to, in old order."""
    shared = sorted({k for k in label_map if k >= 0})
    columns = []
    for k in shared:
        members = [c for c, target in enumerate(label_map) if target == k]
        columns.append(np.log(np.exp(np.asarray(new, np.float64)[:, members]).sum(1)))
    return np.stack(columns, 1), np.asarray(old, np.float64)[:, shared]


def focus_weights(focus, *, alpha, beta, old_correct, new_correct):
    """[B] before normalisation."""
    rule = {
        "all": lambda o, n: False,
        "old_correct": lambda o, n: o,
        "new_incorrect": lambda o, n: not n,
        "negative_flip": lambda o, n: o and not n,
    }[focus]
    return np.array([alpha + beta * bool(rule(o, n)) for o, n in zip(old_correct, new_correct, strict=True)])


def prototypes(embeddings, labels, classes, minimum):
    """[C, d]: normalised mean directions, small classes shrunk towards the mean of all images."""
    e = np.asarray(embeddings, np.float64)
    unit = np.array([v / math.sqrt(v @ v) if v @ v > 0 else v for v in e])
    out = np.full((classes, e.shape[1]), np.nan)
    for c in range(classes):
        members = unit[np.asarray(labels) == c]
        n = len(members)
        if n == 0:
            continue
        share = 1.0 if n >= minimum else n / (n + minimum)
        w = share * members.mean(0) + (1 - share) * unit.mean(0)
        out[c] = w / math.sqrt(w @ w)
    return out


def merged_logits(olds, weights):
    """LM target of several predecessors: the weighted mean of their logits. [K, B, C], [K, B] -> [B, C]."""
    w = np.asarray(weights, np.float64)[..., None]
    return (w * np.asarray(olds, np.float64)).sum(0) / w.sum(0)


def merged_mixture(olds, weights, temperature):
    """KL target of several predecessors: tau * log of the arithmetic mixture of their probabilities, centred."""
    w = np.asarray(weights, np.float64)
    mixed = []
    for i in range(w.shape[1]):
        p = sum(w[k, i] * np.exp(log_softmax(np.asarray(olds[k][i], LONG) / temperature)) for k in range(len(w)))
        z = temperature * np.log(p / w[:, i].sum())
        mixed.append(z - z.mean())
    return np.array(mixed, np.float64)
