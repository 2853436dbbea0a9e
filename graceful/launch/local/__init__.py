"""This machine as a backend: detached jobs and their supervisor. Runs on the client."""
