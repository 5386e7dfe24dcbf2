"""Random "trained" tensors for a transformed network, hard ones among them."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from laurel_graph.config import SiteSpec
from laurel_graph.formula import resolve_weights
from laurel_graph.opset.schema import read_specs, tensor_name

Array = NDArray[np.float64]


def train(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Writes random values into the LAuReL tensors of *model*, in place."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    hard = rng.random() < 0.35
    for site, spec in read_specs(model).items():
        for name, value in _drawn(spec, rng, hard).items():
            tensor = tensors[tensor_name(site, name)]
            dtype = numpy_helper.to_array(tensor).dtype
            tensor.CopyFrom(numpy_helper.from_array(value.astype(dtype), tensor.name))


def _drawn(spec: SiteSpec, rng: np.random.Generator, hard: bool) -> dict[str, Array]:
    values: dict[str, Array] = {}
    for name, shape in spec.tensor_shapes().items():
        if name in ("A", "previous_A"):
            values[name] = rng.normal(0, 1 / np.sqrt(spec.width), shape)
        elif name in ("B", "previous_B"):
            values[name] = rng.normal(0, 0.4, shape) * (rng.random() > 0.1)
        elif name == "gamma":
            values[name] = rng.normal(0, 0.5, shape) * (rng.random(shape) > 0.2)
        else:
            values[name] = np.asarray(_weight(spec, rng, hard, shape))
    if spec.has_rw and spec.weights != "free":
        w = rng.normal(0, 1, (2, *values["alpha"].shape))
        if hard:
            w = np.where(rng.random(w.shape) < 0.3, w * 40, w)
        values["alpha"], values["beta"] = resolve_weights(spec.weights, np.clip(w, -100, 100))
    return values


def _weight(spec: SiteSpec, rng: np.random.Generator, hard: bool, shape: tuple[int, ...]) -> Array:
    """A free α or β: near 1, or now and then 0, negative, very large or very small."""
    value = np.asarray(rng.uniform(0.5, 1.6, shape))
    if not hard:
        return value
    far = (1e4, 1e-4) if spec.dtype in ("float32", "float64") else (8.0, 0.05)
    odd = rng.choice([0.0, -1.0, -0.7, *far, 1e-40, 1e3 if spec.dtype == "float32" else 2.0], size=shape)
    return np.asarray(np.where(rng.random(shape) < 0.4, odd, value))
