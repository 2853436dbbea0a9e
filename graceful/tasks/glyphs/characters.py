"""Which characters the glyphs are, what their classes are called and in which order a growing product learns them.

Runs in every process that opens the task; a table, nothing else. Changing any order here changes class indices and the
open set: rebuild the archive and say so in the changelog.
"""

from __future__ import annotations

import hashlib

ALPHANUMERIC = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""62 characters that every face has."""

SAME_SHAPE = "cijklmopsuvwxyz"
"""Lower-case letters that share their capital's class, because handwritten and drawn they differ in little but size.

Source: the balanced split of EMNIST (Cohen, Afshar, Tapson, van Schaik, 2017) joins the same fifteen.
"""

PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_{|}~"
"""31 ASCII marks. The grave accent is left out: many faces draw it like an apostrophe."""

LATIN_1 = "".join(
    chr(code) for code in range(0xA1, 0x100) if code not in (0xA8, 0xAA, 0xAC, 0xAD, 0xAF, 0xB0, 0xB2, 0xB3, 0xB4, 0xB5)
    and code not in (0xB7, 0xB8, 0xB9, 0xBA, 0xBC, 0xBD, 0xBE, 0xD7)
)  # fmt: skip
"""77 letters and signs of Latin-1, without free accents, superscripts, fractions and the like."""

UNSEEN = 45
"""Characters of the open set."""


def class_of(character: str) -> str:
    """Return the class a character belongs to: itself, or the capital of the same shape."""
    return character.upper() if character in SAME_SHAPE else character


def _by_hash(characters: str) -> str:
    """Return a fixed shuffle that depends on nothing but the characters themselves."""
    return "".join(sorted(characters, key=lambda c: hashlib.sha256(f"glyphs {c}".encode()).hexdigest()))


_SHUFFLED = _by_hash(PUNCTUATION + LATIN_1)

OPEN_SET = _SHUFFLED[:UNSEEN]
"""The characters no version is ever trained on, whatever its spec says."""

SEEN_EXTRA = _SHUFFLED[UNSEEN:]
"""63 further characters that versions may learn with `characters: all`."""

CLOSED_SET = tuple(dict.fromkeys(class_of(c) for c in ALPHANUMERIC))
"""47 classes: digits, then capitals, then the lower-case letters of their own shape: the product learns to read them in
this order."""

ALL_SEEN = CLOSED_SET + tuple(SEEN_EXTRA)
"""110 classes."""

CHARACTERS = ALPHANUMERIC + SEEN_EXTRA + OPEN_SET
"""170 characters, in the archive's order."""
