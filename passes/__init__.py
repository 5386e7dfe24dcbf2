"""The passes: read (torch.fx, ONNX), detect, select, rewrite, fold, deploy, verify; ``pipeline`` runs them in a row.

A pass takes a graph and returns what it changed, what it skipped and why. Arrows run one way: tools use passes, passes
use ``laurel_graph``'s ground, never the other way round.
"""
