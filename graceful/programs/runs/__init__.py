"""One run of a program as a value, the versions that it descends from, and what is recorded about it."""
