"""`graceful search-architecture`: a supernet, its journal, actors that measure its paths, the winners as specs."""
