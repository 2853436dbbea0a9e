"""Tensor operations that several losses share: distances, alignment, label spaces, weights, means. Run in workers."""
