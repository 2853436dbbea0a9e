"""Checks for losses, metrics and backends of other packages. Needs pytest only for `backend`; runs in their tests."""
