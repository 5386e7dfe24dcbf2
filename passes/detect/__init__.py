"""Finds residual connections in the neutral graph view: joins, paths, streams, the rule and its reasons."""
