"""A Ray cluster that exists already as a backend: jobs of its job server. Runs on the client."""
