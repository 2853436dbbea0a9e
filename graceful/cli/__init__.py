"""The `graceful` command: parse, load, start a program, follow it. Runs on the client and imports no torch.

`graceful --help` imports click and nothing heavier, so that it answers at once; each command imports what it needs.
"""

from __future__ import annotations

from collections.abc import Sequence

from graceful.errors import EXIT_INTERRUPTED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every error is one line on stderr."""
    try:
        from graceful import startup

        startup.write_anything()
        from graceful.cli.app import graceful
        from graceful.cli.boundary import guarded
    except KeyboardInterrupt:  # nothing can report an error yet
        return EXIT_INTERRUPTED
    return guarded(graceful, arguments)
