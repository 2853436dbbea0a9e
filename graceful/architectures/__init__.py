"""Networks for query models, searched or pruned: a space, costs, a supernet that shares weights, searchers, channels.

space      paths of a space as JSON values, drawn, changed and crossed
costs      multiply-accumulates, parameters and int8 bytes of a path, without building it
supernet   all paths in one network
searchers  which paths to measure next: evolution, or random ones
channels   which channels of a network matter, and how few of them keep a budget
nested     a network and narrower ones within it
held_out   the samples that a search sees, and the task that trains its supernet
measuring  how well a path of a trained supernet finds
"""
