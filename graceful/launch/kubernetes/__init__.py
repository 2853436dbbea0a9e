"""Client of Kubernetes API servers and what holds for every pod, with or without Ray. Runs on the client."""
