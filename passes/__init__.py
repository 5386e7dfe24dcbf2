"""The passes, one a file: detect, select, insert (torch.fx, ONNX), export, fold, fuse, deploy, verify.

A pass takes a graph and returns what it changed, what it skipped and why. Arrows run one way: tools use passes, passes
use ``laurel_graph``'s ground, never the other way round.
"""
