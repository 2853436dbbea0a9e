"""`graceful adapt`: an adapter between two versions, or two files of vectors: fitted, measured, judged. Driver."""
