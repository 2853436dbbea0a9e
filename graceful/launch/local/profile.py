"""The section of a profile of kind local. Runs on the client."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from graceful.launch.base import Profile, Variables

if TYPE_CHECKING:
    from graceful.launch.backend import Backend, Warn


class Local(Profile):
    """This machine: programs are child processes."""

    kind: Literal["local"]
    env: Variables = Field(default_factory=dict)
    """Variables added to ours."""

    is_here: ClassVar[bool] = True

    def build(self, *, home: Path, offline: bool = False, warn: Warn = lambda error: None) -> Backend:
        """Return the backend of detached jobs below a home."""
        from graceful.launch.local.backend import LocalBackend

        return LocalBackend(profile=self, home=home)

    @property
    def variables(self) -> Mapping[str, str]:
        """Return variables that a job gets in addition to ours."""
        return self.env
