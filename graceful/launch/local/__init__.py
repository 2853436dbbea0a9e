"""This machine as a place to run: detached jobs and their supervisor. Runs on the client."""
