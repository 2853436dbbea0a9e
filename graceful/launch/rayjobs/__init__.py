"""A Ray cluster that exists already as a place to run: jobs of its job server. Runs on the client."""
