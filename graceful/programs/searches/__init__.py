"""`graceful compare-search`: the same queries in two indices, compared result by result. Driver."""
