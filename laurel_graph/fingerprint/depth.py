"""How deep in a graph each weight is used: shows that two layers of one shape have changed places."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One node of a graph, torch or ONNX.

    Attributes:
        inputs: the values it reads.
        outputs: the values it computes.
        weights: the weights that it holds itself.
        entry: it is an input of the graph.
    """

    inputs: Sequence[Hashable]
    outputs: Sequence[Hashable]
    weights: Collection[Hashable] = ()
    entry: bool = False


def depths(steps: Iterable[Step], matrices: Collection[Hashable]) -> dict[Hashable, int]:
    """Returns weight to the number of *matrices* on the longest way from an input to its first use, itself included.

    Vectors do not count: exporters and optimisers split, merge and fold biases and norms, but leave the order of the
    matrices. What is computed from weights alone (a transposition, a cast) counts as the weights it is made of.

    Args:
        steps: the nodes in the order they run.
        matrices: the weights of two or more axes.
    """
    level: dict[Hashable, int] = {}
    made_of: dict[Hashable, frozenset[Hashable]] = {}
    found: dict[Hashable, int] = {}
    for step in steps:
        weights = frozenset(step.weights).union(*(made_of[name] for name in step.inputs if name in made_of))
        live = [level[name] for name in step.inputs if name in level]
        if not live and not step.entry:
            made_of.update((name, weights) for name in step.outputs)
            continue
        depth = max(live, default=0)
        for weight in weights:
            found[weight] = min(found.get(weight, depth + 1), depth + 1)
        depth += any(weight in matrices for weight in weights)
        level.update((name, depth) for name in step.outputs)
    return found
