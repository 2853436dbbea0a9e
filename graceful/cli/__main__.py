"""`python -m graceful.cli` is `graceful`, for places without the script. Runs on the client."""

from __future__ import annotations

import sys


def main() -> int:
    """Take the working directory off the path of modules, then run the command line."""
    from graceful.startup import leave_working_directory

    leave_working_directory()
    from graceful.cli import main as graceful

    return graceful()


if __name__ == "__main__":
    sys.exit(main())
