"""The waist between what runs and where it runs: a job is a command with an environment and a document. Client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """Everything a place needs to know in order to run a program.

    Attributes:
        name: For people: messages and process lists.
        command: Program and arguments; never a shell line.
        env: Variables added to those that the place has anyway.
        document: Text that the program reads from its standard input; None: it inherits ours.
    """

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    document: str | None = None
