"""One published loss per file: pure functions that return one value per sample. Run in workers."""
