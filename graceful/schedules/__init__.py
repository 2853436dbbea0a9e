"""Schedules: when they fire, what is due, and the scheduler of one machine. Runs on the client."""
