"""The search of networks for query models: a space, what its paths cost, a supernet that shares weights, searchers.

space      paths of a space as JSON values, drawn, changed and crossed
costs      multiply-accumulates, parameters and int8 bytes of a path, without building it
supernet   all paths in one network
searchers  which paths to measure next: evolution, or random ones
held_out   the samples that a search sees, and the task that trains its supernet
measuring  how well a path of a trained supernet finds
"""
