"""One network through symbolic_trace, torch.export and ONNX: the same roles and the same verdicts."""

from __future__ import annotations

import warnings

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from laurel_graph.graph_view import GraphView, Role
from laurel_graph.passes.detect.rule import detect
from laurel_graph.passes.read_fx import roles as of_torch
from laurel_graph.passes.read_fx.capture import capture
from laurel_graph.passes.read_onnx import roles as of_onnx
from laurel_graph.passes.read_onnx.view import view_of

D = 8
FUNCTIONS = {
    **{f.__name__: f for f in (F.relu, F.celu, F.softsign, F.mish, F.softplus, F.hardtanh)},
    **{f.__name__: f for f in (torch.abs, torch.exp, torch.exp2, torch.log2, torch.sign, torch.sin, torch.erf)},
    "clamp_min": lambda v: torch.clamp_min(v, 0.1),
    "clamp_max": lambda v: torch.clamp_max(v, 0.1),
    "clamp": lambda v: v.clamp(-1, 1),
    "cumsum": lambda v: v.cumsum(-1),
}
SAME = {
    "relu": "Relu", "leaky_relu": "LeakyRelu", "prelu": "PRelu", "elu": "Elu", "selu": "Selu", "celu": "Celu",
    "sigmoid": "Sigmoid", "tanh": "Tanh", "softplus": "Softplus", "softsign": "Softsign", "hardsigmoid": "HardSigmoid",
    "hardswish": "HardSwish", "mish": "Mish", "gelu": "Gelu", "clamp": "Clip", "clamp_min": "Clip", "clamp_max": "Clip",
    "erf": "Erf", "threshold": "ThresholdedRelu", "silu": "Swish", "softshrink": "Shrink", "hardshrink": "Shrink",
    "maximum": "Max", "minimum": "Min", "softmax": "Softmax", "log_softmax": "LogSoftmax", "pow": "Pow", "sqrt": "Sqrt",
    "reciprocal": "Reciprocal", "neg": "Neg", "abs": "Abs", "exp": "Exp", "log": "Log", "floor": "Floor",
    "ceil": "Ceil", "round": "Round", "sign": "Sign", "sin": "Sin", "cos": "Cos", "cumsum": "CumSum",
    "mean": "ReduceMean", "sum": "ReduceSum", "prod": "ReduceProd", "logsumexp": "ReduceLogSumExp", "amax": "ReduceMax",
    "amin": "ReduceMin", "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "matmul": "MatMul", "linear": "Gemm",
    "einsum": "Einsum", "conv2d": "Conv", "conv_transpose2d": "ConvTranspose", "interpolate": "Resize",
    "pixel_shuffle": "DepthToSpace", "pixel_unshuffle": "SpaceToDepth", "grid_sample": "GridSample", "cat": "Concat",
    "where": "Where", "gather": "GatherElements", "index_put": "ScatterND", "scatter": "ScatterElements",
    "slice": "Slice", "split": "Split", "pad": "Pad", "topk": "TopK", "reshape": "Reshape", "permute": "Transpose",
    "flatten": "Flatten", "squeeze": "Squeeze", "unsqueeze": "Unsqueeze", "expand": "Expand", "tile": "Tile",
    "max_pool2d": "MaxPool", "avg_pool2d": "AveragePool", "lp_pool2d": "LpPool", "batch_norm": "BatchNormalization",
    "layer_norm": "LayerNormalization", "rms_norm": "RMSNormalization", "group_norm": "GroupNormalization",
    "instance_norm": "InstanceNormalization", "local_response_norm": "LRN", "normalize": "LpNormalization",
    "dropout": "Dropout", "to": "Cast", "clone": "Identity", "lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN",
    "fft": "DFT", "col2im": "Col2Im", "eq": "Equal", "ge": "GreaterOrEqual", "bitwise_and": "BitwiseAnd",
    "argmax": "ArgMax", "isnan": "IsNaN", "arange": "Range", "nonzero": "NonZero", "size": "Shape",
}  # fmt: skip
"""Operator of torch to the operator of ONNX that it is exported as."""


@pytest.mark.parametrize("name", SAME)
def test_an_operator_means_the_same_when_it_is_read_from_torch_and_from_onnx(name):
    assert of_torch.ROLE_OF[name] is of_onnx.ROLE_OF[SAME[name]]


class Block(nn.Module):
    """A map of the input and two maps of it with a function between them."""

    def __init__(self, function):
        super().__init__()
        self.skip, self.first, self.second = (nn.Linear(D, D) for _ in range(3))
        self.function = function

    def forward(self, x):
        return torch.sigmoid(self.skip(x) + self.second(self.function(self.first(x))))


def verdicts(view: GraphView) -> list[str]:
    found = detect(view)
    kinds = {key: residual.kind for residual in found.residuals for key in residual.joins}
    reasons = {rejected.join: rejected.reason for rejected in found.rejected}
    joins = [v for v in view.vertices if v.role is Role.ADD and sum(view.vertices[u].data for u in v.inputs) > 1]
    return [kinds.get(v.key) or reasons[v.name or v.key] for v in joins]


def test_the_same_network_has_the_same_verdicts_when_it_comes_through_another_door(tmp_path):
    x, model = torch.randn(2, 4, D), nn.Sequential(*map(Block, FUNCTIONS.values())).eval()
    program = torch.export.export(model, (x,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(program, (), tmp_path / "model.onnx", dynamo=True, verbose=False, optimize=False)
    found = {
        "symbolic_trace": verdicts(capture(model, (x,)).view),
        "export": verdicts(capture(program).view),
        "onnx": verdicts(view_of(onnx.load(tmp_path / "model.onnx"))),
    }
    for door, kinds in found.items():
        assert dict(zip(FUNCTIONS, kinds, strict=True)) == dict(zip(FUNCTIONS, found["onnx"], strict=True)), door
    assert found["onnx"].count("projection") == 10
