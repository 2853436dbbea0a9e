"""How people name a version: `glyphs`, `glyphs:3`, `glyphs:v3`, `glyphs@previous`. Pure.

A number is a number of the registry, also where a version is called so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from graceful.errors import SpecError
from graceful.lineage.listing import Listed
from graceful.sections import NAME, unreserved

_FORM = re.compile(rf"(?P<model>{NAME[1:-1]})(:(?P<name>{NAME[1:-1]})|@(?P<alias>[\w-]{{1,255}}))?")
"""`graceful.sections.REFERENCE` with names for its parts."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A version as a person names it.

    Attributes:
        model: Model family.
        name: Its name, or its number as text; empty: not given.
        alias: An alias that points to it; empty: not given.
    """

    model: str
    name: str = ""
    alias: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read what a person wrote.

        Raises:
            SpecError: It has another form.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise SpecError(f"version {text!r}: must be MODEL, MODEL:NUMBER, MODEL:NAME or MODEL@ALIAS, e.g. glyphs:3")
        try:
            unreserved(text)
        except ValueError as e:
            raise SpecError(f"version {text}: {e}") from e
        return cls(model=match["model"], name=match["name"] or "", alias=match["alias"] or "")

    @property
    def bare(self) -> bool:
        """Return whether it names a model and no version of it."""
        return not self.name and not self.alias

    def __str__(self) -> str:
        return f"{self.model}{':' if self.name else '@' if self.alias else ''}{self.name or self.alias}"


def find(reference: Reference, versions: Sequence[Listed]) -> Listed:
    """Return the version that a reference names; for a bare model, the newest that may be promoted.

    Args:
        reference: Whose `model` the versions belong to.
        versions: Newest first.

    Raises:
        SpecError: There is none; the message lists the newest.
    """
    if not versions:
        raise SpecError(f"model {reference.model}: the registry has no version of it; check the name")
    if reference.bare:
        matches = [item for item in versions if item.gate in ("passed", "waived")]
    elif reference.alias:
        matches = [item for item in versions if reference.alias in item.aliases]
    else:
        by_number = [item for item in versions if str(item.version) == reference.name]
        matches = by_number or [item for item in versions if item.name == reference.name]
    if matches:
        return matches[0]
    known = ", ".join(_version_text(item) for item in versions[:5]) + (", ..." if len(versions) > 5 else "")
    problem = "no version passed" if reference.bare else f"no version {reference}"
    raise SpecError(f"{reference.model}: {problem}; there are {known}")


def _version_text(item: Listed) -> str:
    aliases = "".join(f" @{alias}" for alias in item.aliases)
    return f"{item.version} ({item.name or 'not by graceful'}{aliases})"
