"""From a spec and predecessors to the weights of a new version, by training or by combination. Runs in the driver."""
