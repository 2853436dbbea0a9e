"""Texts with some words left out, as a number says: the augmentation of texts. Driver and workers."""

from __future__ import annotations

import numpy as np


def without_some(texts: str | tuple[str, ...], *, share: float, view: int) -> str | tuple[str, ...]:
    """Return a text, or a pair of texts, of which each word is left out with a probability.

    Words are what white space separates, so that versions with different tokenizers read the same words. One word
    of each text stays. The same text with the same number gives the same words.

    Args:
        texts: One text, or the parts of a pair.
        share: Probability of a word to be left out, in (0, 1).
        view: Number that determines which.
    """
    generator = np.random.default_rng(view)
    if isinstance(texts, str):
        return _thinned(texts, share, generator)
    return tuple(_thinned(text, share, generator) for text in texts)


def _thinned(text: str, share: float, generator: np.random.Generator) -> str:
    words = text.split()
    draws = generator.random(len(words))
    if not words or bool((draws >= share).all()):
        return text
    kept = [word for word, draw in zip(words, draws, strict=True) if draw >= share]
    return " ".join(kept or [words[int(draws.argmax())]])
