"""A residual with a gate, x' = x + 2σ(s·xg)·f(x): a variant of your own in one file.

    laurel --plugin gated_residual transform model.onnx -o gated.onnx --variant gate --set slope=0.5
    laurel --plugin gated_residual finetune gated.onnx --data train.npz --loss cross_entropy -o tuned.onnx
    laurel --plugin gated_residual deploy tuned.onnx -o served.onnx --portable

The gate is one number per position, computed from x there, on tokens and on pixels alike; g (D, 1) is learned, the
slope s is an option. Why 2σ and not σ: at g = 0 it is exactly 1, so the model starts with the bits that it had, and a
gate can move both ways from there, to 0 and to 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from laurel_graph.variants import Operands, Option, Term, register


@register
class Gate(Term):
    """x + 2σ(s·xg)·f, g = 0 at the start."""

    name = "gate"
    tensors = {"g": ("D", 1)}
    options = {"slope": Option(1.0, "how steep the gate is")}

    def formula(self, skip: Any, branch: Any, at: Operands) -> tuple[Any, Any]:
        return skip, 2 / (1 + np.exp(-at.options["slope"] * (at.x @ at["g"]))) * branch

    def forward(self, skip: Any, branch: Any, at: Operands) -> tuple[Any, Any]:
        return skip, 2 * torch.sigmoid(at.options["slope"] * (at.x @ at["g"])) * branch

    def body(self, nodes: Any, skip: str, branch: str, at: Operands) -> tuple[str, str]:
        steep = nodes.add("Mul", nodes.times(at.x, at["g"]), nodes.scalar(at.options["slope"]))
        gate = nodes.add("Sigmoid", steep)
        return skip, nodes.add("Mul", nodes.add("Add", gate, gate), branch)
