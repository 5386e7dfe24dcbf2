"""DenseFormer's depth-weighted average (Pagliardini et al. 2024, arXiv 2402.02622) as a variant, in one file.

    laurel --plugin depth_weighted_average transform model.onnx -o dense.onnx --variant dwa
    laurel --plugin depth_weighted_average finetune dense.onnx --data train.npz --loss cross_entropy -o tuned.onnx
    laurel --plugin depth_weighted_average deploy tuned.onnx -o served.onnx --portable

Behind every residual connection stands a weighted average of what the block makes and of all earlier activations of
the stream, the embedding included:

    x_{i+1} = w_0·(f(x_i) + x_i) + w_1·x_i + Σ_j w_{1+j}·x_{i-j}

One number per activation is learned. w = (1, 0, 0, ...) at the start, as in the paper: the model is the one it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from laurel_graph.variants import Operands, Site, Term, register


@register
class DepthWeightedAverage(Term):
    """w_0·(f + x) + w_1·x + Σ w_{1+j}·previous_j, w = (1, 0, 0, ...) at the start."""

    name = "dwa"
    tensors = {"depth_weights": ("k+2",)}
    earlier = None  # all there are

    def start(self, site: Site, shapes: Mapping[str, tuple[int, ...]], draw: np.random.Generator) -> dict[str, Any]:
        return {"depth_weights": np.eye(site.previous + 2)[0]}

    def formula(self, skip: Any, branch: Any, at: Operands) -> tuple[Any, Any]:
        w = at["depth_weights"]
        skip = w[0] * skip
        for j, activation in enumerate((at.x, *at.previous)):
            skip = skip + w[1 + j] * activation
        return skip, w[0] * branch  # torch tensors know the same operators, so this is the torch forward too

    def body(self, nodes: Any, skip: str, branch: str, at: Operands) -> tuple[str, str]:
        w = at["depth_weights"]
        own = nodes.element(w, 0)
        skip = nodes.add("Mul", skip, own)
        for j, activation in enumerate((at.x, *at.previous)):
            skip = nodes.add("Add", skip, nodes.add("Mul", activation, nodes.element(w, 1 + j)))
        return skip, nodes.add("Mul", branch, own)
