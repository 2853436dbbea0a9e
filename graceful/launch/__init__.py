"""Where programs run. What crosses into this package is a `job.JobSpec`; it knows no ML. Runs on the client."""
