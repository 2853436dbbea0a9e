"""Tables of texts or numbers: files, rows, and the task. Driver and workers; the readers load on first use."""
