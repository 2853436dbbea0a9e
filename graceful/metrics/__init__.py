"""What is measured: flips, retrieval, compatibility, intervals. Runs in driver and workers; NumPy, no torch."""
