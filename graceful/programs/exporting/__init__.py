"""`graceful export`: a version as one file for a device, and what that file is worth. Runs in the driver.

`files` writes and opens files, `program` evaluates and gates them. Packages of the extra `export` load on first use.
"""
