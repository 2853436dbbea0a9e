"""Maps between the embedding spaces of two versions: fitted on pairs of vectors, without labels, in minutes. Driver.

An adapter stands in front of one side of a search: `queries` maps the new version's embedding of a query into the space
of the old gallery, `gallery` maps the old gallery into the space of new queries. Maths and files alone; which versions,
data and gate belong to it is the business of `graceful.programs.adapting`.
"""

from graceful.adapters.bundle import Adapter, Described, Side, found, load, save
from graceful.adapters.closed_form import low_rank, procrustes
from graceful.adapters.maps import KINDS, Kind, Map
from graceful.adapters.mlp import residual_mlp
from graceful.adapters.selection import Pairs, choose
from graceful.adapters.sphere import slerp

__all__ = [
    "KINDS",
    "Adapter",
    "Described",
    "Kind",
    "Map",
    "Pairs",
    "Side",
    "choose",
    "found",
    "load",
    "low_rank",
    "procrustes",
    "residual_mlp",
    "save",
    "slerp",
]
