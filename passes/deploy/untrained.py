"""Whether a transformed model was trained at all: what is still at its start computes what the original does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto

from laurel_graph.formula import residual
from laurel_graph.onnx_model.tensors import tensor_array
from laurel_graph.opset.schema import read_specs, tensor_name

NOTE = (
    "every site is still at its start and computes x + f(x), so that this file gains nothing over the original: train "
    "first (laurel finetune, or lg.import_onnx and a loop), or longer, and deploy what comes out."
)


def is_untrained(model: ModelProto, folder: Path | None) -> bool:
    """Returns whether every site of a transformed model adds nothing of its own to x + f(x), on random numbers.

    Args:
        model: the transformed model.
        folder: where its external weights lie; ``None`` where they all lie in it.
    """
    rng = np.random.default_rng(0)
    specs = read_specs(model)
    for spec in specs.values():
        tensors = {
            name: np.asarray(tensor_array(model, tensor_name(spec.site, name), folder or Path()), np.float64)
            for name in spec.tensor_shapes()
        }
        x, f, *previous = rng.standard_normal((2 + spec.previous, 1, spec.width))
        made = residual(x, f, tensors, previous, terms=spec.terms, options=dict(spec.options))
        if not np.array_equal(made, x + f):
            return False
    return bool(specs)
