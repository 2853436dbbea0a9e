"""Galleries of embeddings that know which model made each vector, and survive an upgrade of it. Driver, NumPy, torch.

`Index` is what programs use: build, add, search, roll back. Vectors of several models may lie in one index; each of
them says which, and none is compared with a query of another model unless the index says that the two may be.
"""

from graceful.index.base import Backend, Hits, View
from graceful.index.gallery import Index
from graceful.index.space import Space
from graceful.index.vectors import Vectors

__all__ = ["Backend", "Hits", "Index", "Space", "Vectors", "View"]
