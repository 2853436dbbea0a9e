"""Writes the data card of the glyphs archive from its record. Runs in the archive's builder only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from graceful.tasks.glyphs.characters import ALL_SEEN, CLOSED_SET, OPEN_SET
from graceful.tasks.glyphs.families import ALIASES, FACES_PER_KEY, NEAR
from graceful.tasks.glyphs.render import BASELINE, CAP_HEIGHT, DISTINCT, LEVELS, SIZE


def card(record: Mapping[str, Any]) -> str:
    """Return Markdown: what the data is, how it is split, what leaks, every face with its licence."""
    sections = (_summary(record), _splits(), _leaks(record), _licences(record), _faces(record["faces"]))
    return "\n\n".join(sections) + "\n"


def _summary(record: Mapping[str, Any]) -> str:
    dropped = "\n".join(f"| {reason} | {count} |" for reason, count in record["dropped"].items())
    return f"""# Glyphs: data card

Characters of freely licensed typefaces, rendered. {record["images"]} images of 170 characters,
{len(record["faces"])} faces of {record["designs"]} designs, {SIZE}x{SIZE} pixels, {LEVELS} grey levels,
ink bright on black. Class: the character. Group: the design.
SHA-256 of glyphs.npz: `{record["sha256"]}`, checked whenever it is opened.

Made for measuring what a model refresh breaks: real shapes, real variation, small enough for a laptop.
Not made for reading text: no context, no noise, no handwriting, Latin characters only.

Drawing: the capital H is {CAP_HEIGHT} pixels high, the baseline is at row {BASELINE}, glyphs are centred horizontally,
wide ones are cut at the border. A face is dropped when it lacks a letter or digit, has a blank or solid one,
shows fewer than {DISTINCT} distinct images among the {len(CLOSED_SET)} classes, is too thin to be seen, draws
capitals in place of small letters, or equals another face. At most {FACES_PER_KEY} faces of a design are kept:
the plainest, then those most unlike it.

| font files left out because | files |
|---|---|
{dropped}

Rebuild: install the Debian packages of packages.txt, then `python -m graceful.tasks.glyphs.build`.
The same package versions give the same bytes. Nothing is fetched at run time or in tests."""


def _splits() -> str:
    return f"""## Classes and splits

- Closed set, {len(CLOSED_SET)} classes in this order: `{"".join(CLOSED_SET)}`. Fifteen small letters
  share their capital's class, because they differ in little but size (the same fifteen as in the balanced
  split of EMNIST). `classes: n` takes the first n: digits, capitals, small letters.
- `characters: all` adds {len(ALL_SEEN) - len(CLOSED_SET)} marks and accented letters: {len(ALL_SEEN)} classes.
- Open set, {len(OPEN_SET)} characters no version is ever trained on, whatever its spec:
  `{OPEN_SET}`.
- Designs are split 50/12/8/30 into train, validation, constraint and test by a hash of (`split`, design).
  No design is in two splits. `fonts` takes the first designs of train in the order of another hash: growing
  data is nested.
- Query and gallery: the open set in the test designs, one half of these designs each."""


def _leaks(record: Mapping[str, Any]) -> str:
    aliases = "\n".join(f"- {alias} -> {target}" for alias, target in sorted(ALIASES.items()))
    joined = "\n".join(f"- {line}" for line in record["joined"]) or "- none"
    return f"""## Known leaks and limits

Typefaces imitate each other. Copies under other names are joined into one design by the table below; designs
with two faces that differ by less than {NEAR:g} of their ink are joined as well. Bold sans-serifs of independent
designers differ by 0.05 and more and stay apart. Some designers drew several designs; they count as
independent. Intervals are drawn over designs, and there are few of them: about
{round(0.3 * record["designs"])} in the test split.

Joined by name:

{aliases}

Joined by pixels:

{joined}"""


def _licences(record: Mapping[str, Any]) -> str:
    faces = record["faces"]
    counts = Counter(face["licence"] for face in faces)
    rows = "\n".join(f"| {licence} | {count} |" for licence, count in sorted(counts.items()))
    packages = {(face["package"], face["licence"], face["copyright_sha256"]) for face in faces}
    notices = "\n".join(f"| {package} | {licence} | `{digest}` |" for package, licence, digest in sorted(packages))
    return f"""## Licences

Pictures of typefaces whose licences permit it, read from each package's copyright file by hand and checked by
the builder; this is not a legal advice. GPL fonts without another licence, attribution licences, and unclear
cases are left out.

| licence | faces |
|---|---|
{rows}

| package | licence | SHA-256 of its copyright file |
|---|---|---|
{notices}"""


def _faces(faces: Sequence[Mapping[str, Any]]) -> str:
    columns = ("design", "family", "style", "file", "package", "licence")
    rows = "\n".join(f"| {' | '.join(face[column] for column in columns)} |" for face in faces)
    return f"""## Faces

| design | family | style | file | package | licence |
|---|---|---|---|---|---|
{rows}"""
