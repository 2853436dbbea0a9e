"""`python -m graceful.cli` is `graceful`, for places without the script. Runs on the client."""

import sys

from graceful.cli import main

sys.exit(main())
