"""Shards: tar files of samples, indexed once and then read by ranges of bytes. Driver and workers."""
