"""Outputs of versions on data splits: computed, cached, recorded and compared in pairs. Runs in the driver."""
