"""What claims rest on: each module prints a table and writes benchmarks/results/NAME.json."""
