"""Adds hidden in fused ONNX operators, from detection to removal."""

import numpy as np
import pytest
from models import onnx_text, run_onnx
from tolerance import assert_close

from laurel_graph import import_onnx, trainable_parameters
from laurel_graph.config import LaurelConfig
from laurel_graph.errors import NoResidualError
from laurel_graph.passes.pipeline import inspect, remove, transform

WEIGHTS = {"k": (4, 4, 3, 3), "w": (8, 8), "g": (8,), "c": (8,), "b": (4,)}
IMAGES = "(float[N,4,6,6] x) => (float[N,4,6,6] y)"
ROWS = "(float[N,8] x) => (float[N,8] y)"
TOKENS = "(float[N,5,8] x) => (float[N,5,8] y)"
NETS = {
    "FusedConv": (
        f"{IMAGES} {{ "
        'a = com.microsoft.FusedConv<pads = [1, 1, 1, 1], activation = "Relu">(x, k) '
        'y = com.microsoft.FusedConv<pads = [1, 1, 1, 1], activation = "Relu">(a, k, b, x) }'
    ),
    "FusedConv without activation": (
        f"{IMAGES} {{ a = Relu(x) y = com.microsoft.FusedConv<pads = [1, 1, 1, 1]>(a, k, b, x) }}"
    ),
    "Gemm": f"{ROWS} {{ h = Gemm(x, w, c) a = Relu(h) y = Gemm<transB = 1>(a, w, x) }}",
    "Gemm with alpha": f"{ROWS} {{ h = MatMul(x, w) a = Relu(h) y = Gemm<alpha = 0.5, beta = 1.0>(a, w, x) }}",
    "SkipSimplifiedLayerNormalization": (
        f"{TOKENS} {{ f = MatMul(x, w) y = com.microsoft.SkipSimplifiedLayerNormalization(x, f, g, c) }}"
    ),
}


@pytest.mark.parametrize("variant", ["rw", "lr", "rw+lr"])
@pytest.mark.parametrize("name", NETS)
def test_transform_keeps_the_start_and_remove_the_model_when_the_add_is_fused(name, variant):
    model = onnx_text(NETS[name], WEIGHTS, opset=17)
    (residual,) = inspect(model).residuals
    assert not residual.blocked
    new = transform(model, LaurelConfig(variant=variant, rank=2)).model
    dims = [dim.dim_value or 3 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": np.random.default_rng(0).standard_normal(dims).astype(np.float32)}
    for actual, expected in zip(run_onnx(new, feeds), run_onnx(model, feeds), strict=True):
        assert_close(actual, expected, "float32")
    assert remove(new).SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("name", NETS)
def test_nothing_of_the_base_trains_when_the_add_came_out_of_a_fused_operator(name, opset):
    """The exponent and the epsilon of a norm that came apart are named after the site, and are not learned."""
    new = transform(onnx_text(NETS[name], WEIGHTS, opset=opset), LaurelConfig(variant="rw+lr", rank=2)).model
    (residual,) = inspect(new).residuals
    found = set(trainable_parameters(import_onnx(new)))
    assert found == {f"laurel.{residual.site}.{tensor}" for tensor in ("w", "A", "B")}


def test_transform_is_refused_with_a_reason_when_channels_have_four_axes_of_space():
    shape = "float[N,4,3,3,3,3]"
    model = onnx_text(f"({shape} x) => ({shape} y) {{ a = Conv(x, k) y = Add(x, a) }}", {"k": (4, 4, 1, 1, 1, 1)})
    with pytest.raises(NoResidualError, match="4 axes of space; at most 3"):
        transform(model)
