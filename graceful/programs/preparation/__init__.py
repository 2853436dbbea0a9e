"""Checks of data and constraints before training, and what predecessors contribute to it. Runs in the driver."""
