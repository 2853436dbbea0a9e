"""`graceful index` and `graceful backfill`: what a program does with indices of embeddings. Driver."""
