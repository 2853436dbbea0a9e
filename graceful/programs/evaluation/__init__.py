"""Measurements of a version alone and against its ancestors, and the files that report them. Runs in the driver."""
