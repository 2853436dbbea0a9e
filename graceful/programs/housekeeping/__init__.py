"""Programs that the client starts in a process of their own, because it cannot reach the registry or buckets."""
