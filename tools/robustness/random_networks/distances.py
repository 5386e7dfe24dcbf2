"""How far a value of the deployed network may be from the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Array = NDArray[Any]

TOLERANCE = {"float32": 2e-5, "float64": 2e-5, "float16": 5e-3, "bfloat16": 4e-2, "quantised": 5e-2}
"""What a value may be off by, over the size of its channel (quantised networks: in the root mean square)."""


def distance(value: Array, exact: Array, noise: Array, kind: str) -> float:
    """Returns the largest difference over what is allowed, per place on axis 1 and on the last axis.

    Allowed is the tolerance times the size of the channel and eight times the noise of ONNX Runtime's own arithmetic
    there; a channel counts as at least a hundredth as large as the whole. Where bytes lie in between, last bits decide
    between two of them, and root mean squares are compared.
    """
    if value.shape != exact.shape:
        return float("inf")
    if not exact.size:
        return 0.0
    error, size = np.abs(value - exact), np.abs(exact)
    if not np.isfinite(error).all():
        return float("inf")
    noise, tolerance = np.broadcast_to(noise, exact.shape), TOLERANCE[kind]
    if kind == "quantised":
        errors, sizes, noises = (float(np.sqrt(np.mean(v * v))) for v in (error, size, noise))
        return errors / (tolerance * sizes + 3 * noises + 1e-30)
    least, worst = 1e-2 * size.max() + 1e-30, 0.0
    for axis in {1, exact.ndim - 1} if exact.ndim > 1 else {0}:
        rest = tuple(i for i in range(exact.ndim) if i != axis)
        allowed = tolerance * np.maximum(size.max(axis=rest), least) + 8 * noise.max(axis=rest) + 0.1 * noise.max()
        worst = max(worst, float((error.max(axis=rest) / allowed).max()))
    return worst


def choice_distance(
    node: onnx.NodeProto, value: Array, exact: Array, values: Mapping[str, Array], tolerance: float
) -> float:
    """Returns how far a choice that fell another way was from a tie, over what is allowed."""
    if value.shape != exact.shape:
        return float("inf")
    if node.op_type == "QuantizeLinear":
        steps = np.abs(value.astype(np.float64) - exact.astype(np.float64))
        return float(steps.mean() / 0.5) if steps.max() <= 4 else float(steps.mean() / 0.1)
    given = [values[name] for name in node.input if name in values]
    if node.op_type in ("ArgMax", "ArgMin") and given:
        axis = next(item.i for item in node.attribute if item.name == "axis")
        gap = np.take_along_axis(given[0], value, axis) - np.take_along_axis(given[0], exact, axis)
        return float(np.abs(gap).max() / (4 * tolerance * np.abs(given[0]).max()))
    if node.op_type in ("Greater", "Less", "Equal") and len(given) == 2:
        gap = np.abs(given[0] - given[1])[value != exact]
        return float(gap.max() / (4 * tolerance * np.abs(given[0]).max()))
    return 0.0 if node.op_type == "TopK" else float("inf")
