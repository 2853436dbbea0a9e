"""Galleries of embeddings that record which model made each vector, so that they outlive that model. Driver.

Programs use `Index` to build, extend, search and roll back a gallery. One index may hold vectors of several models.
Each vector records its model, and a query is compared with vectors of another model only where the index allows it.
"""

from graceful.index.base import Backend, Hits, View
from graceful.index.gallery import Index
from graceful.index.space import Space
from graceful.index.vectors import Vectors

__all__ = ["Backend", "Hits", "Index", "Space", "Vectors", "View"]
