"""graceful: refresh a model without breaking what already depends on it."""

__version__ = "0.1.0"
