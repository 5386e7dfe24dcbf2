"""Twenty-one small networks on which drawn inputs and final outputs alone show little: what verification has to see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]
MICROSOFT = "com.microsoft"
D = 16


class Network:
    """Builds one ONNX graph, a node at a time.

    Args:
        seed: seed of its weights.
        opset: its operator set.
        dtype: the type of its weights.
    """

    def __init__(self, seed: int = 0, opset: int = 17, dtype: str = "float32") -> None:
        self.rng, self.opset, self.dtype = np.random.default_rng(seed), opset, np.dtype(dtype)
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def const(self, value: Any, kind: Any = None) -> str:
        """Adds a constant and returns its name."""
        array = np.asarray(value)
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array.astype(kind or self.dtype), name))
        return name

    def weight(self, *shape: int, scale: float | None = None) -> str:
        """Adds normal weights."""
        fan = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
        return self.const(self.rng.normal(0, scale or 1 / np.sqrt(fan), shape))

    def op(self, kind: str, *inputs: str, out: str = "", outputs: int = 1, **attributes: Any) -> str:
        """Adds a node and returns the name of its first output."""
        names = [out or f"v{len(self.nodes)}", *(f"v{len(self.nodes)}_{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=names[0], **attributes))
        return names[0]

    def norm(self, x: str, width: int = D) -> str:
        """A layer norm."""
        return self.op(
            "LayerNormalization",
            x,
            self.const(self.rng.uniform(0.5, 1.5, width)),
            self.const(self.rng.normal(0, 0.3, width)),
        )

    def spelled_norm(self, x: str) -> str:
        """A layer norm in plain operators."""
        centred = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
        variance = self.op("ReduceMean", self.op("Pow", centred, self.const(2.0)), axes=[-1])
        deviation = self.op("Sqrt", self.op("Add", variance, self.const(1e-5)))
        scaled = self.op("Mul", self.op("Div", centred, deviation), self.const(self.rng.uniform(0.5, 1.5, D)))
        return self.op("Add", scaled, self.const(self.rng.normal(0, 0.3, D)))

    def mlp(self, x: str, width: int = D) -> str:
        """MatMul, ReLU, MatMul, bias."""
        hidden = self.op("Relu", self.op("MatMul", x, self.weight(width, 2 * width)))
        return self.op(
            "Add", self.op("MatMul", hidden, self.weight(2 * width, width)), self.const(self.rng.normal(0, 0.3, width))
        )

    def blocks(self, x: str, count: int = 2, norm: Callable[[str], str] | None = None) -> str:
        """Residual blocks, pre-norm where *norm* is given."""
        for _ in range(count):
            x = self.op("Add", x, self.mlp(norm(x) if norm else x))
        return x

    def conv(self, x: str, width: int = D, kernel: int = 3, into: int | None = None, bias: bool = False) -> str:
        """A convolution that keeps the size."""
        inputs = [x, self.weight(into or width, width, kernel, kernel)]
        inputs += [self.const(self.rng.normal(0, 0.3, into or width))] * bias
        return self.op("Conv", *inputs, pads=[kernel // 2] * 4)

    def batch_norm(self, x: str, width: int = D) -> str:
        """A batch norm as it is in inference."""
        draws = (self.rng.uniform(0.5, 1.5, width), self.rng.normal(0, 0.3, width))
        moments = (self.rng.normal(0, 0.3, width), self.rng.uniform(0.5, 1.5, width))
        return self.op("BatchNormalization", x, *map(self.const, (*draws, *moments)))

    def model(self, inputs: Sequence[tuple[str, int, Sequence[int | str]]], *outputs: str) -> ModelProto:
        """Returns the model."""
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info(*info) for info in inputs],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self.tensors,
        )
        for value in graph.output:
            value.type.tensor_type.ClearField("elem_type")
            value.type.tensor_type.elem_type = TensorProto.FLOAT
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(MICROSOFT, 1)] if any(node.domain for node in self.nodes) else []
        return helper.make_model(graph, opset_imports=imports, ir_version=8)


TOKENS: Sequence[int | str] = ("n", 4, D)
FLOAT = TensorProto.FLOAT


def _tokens(build: Callable[[Network, str], str], **options: Any) -> ModelProto:
    net = Network(**options)
    net.op("Identity", build(net, "x"), out="y")
    return net.model([("x", FLOAT, TOKENS)], "y")


def _log(net: Network, x: str) -> str:
    return net.blocks(net.op("MatMul", net.op("Log", x), net.weight(D, D)))


def _root(net: Network, x: str) -> str:
    return net.blocks(net.op("MatMul", net.op("Sqrt", x), net.weight(D, D)), norm=net.norm)


def _saturated(net: Network, x: str) -> str:
    last = net.op("MatMul", net.blocks(x), net.weight(D, 2, scale=60.0))
    return net.op("Softmax", last, axis=-1)


def _banned(net: Network, x: str) -> str:
    last = net.blocks(net.op("MatMul", x, net.weight(D, D)), norm=net.norm)
    return net.op("Where", net.const(np.arange(D) < 2, bool), net.const(-1e9), last)


def _pixels_and_scores(net: Network, x: str) -> str:
    trunk = net.norm(net.blocks(x))
    boxes = net.op("Mul", net.op("MatMul", trunk, net.weight(D, 4)), net.const(640.0))
    return net.op("Concat", boxes, net.op("Sigmoid", net.op("MatMul", trunk, net.weight(D, 1))), axis=-1)


def _silent(net: Network, x: str) -> str:
    last = net.op("MatMul", net.blocks(x, norm=net.norm), net.weight(D, 4))
    return net.op("Relu", net.op("Sub", last, net.const(1e4)))


def _masked() -> ModelProto:
    net = Network(5)
    x = net.op("MatMul", "x", net.weight(D, D))
    inside, outside = net.blocks(x, 1), net.blocks(x, 2, norm=net.norm)
    mask = net.op("Unsqueeze", net.op("Cast", "attention_mask", to=TensorProto.BOOL), net.const([2], np.int64))
    net.op("Where", mask, inside, outside, out="y")
    return net.model([("x", FLOAT, ("n", 8, D)), ("attention_mask", TensorProto.INT64, ("n", 8))], "y")


def _ids() -> ModelProto:
    net = Network(6)
    x = net.op("Gather", net.weight(40, D), "ids")
    for _ in range(2):
        x = net.norm(net.op("Add", x, net.mlp(x)))
    net.op("MatMul", x, net.weight(D, 40), out="y")
    return net.model([("ids", TensorProto.INT64, ("n", 6))], "y")


def _images(build: Callable[[Network, str], str], seed: int) -> ModelProto:
    net = Network(seed)
    net.op("Identity", build(net, "x"), out="y")
    return net.model([("x", FLOAT, ("n", 3, 12, 12))], "y")


def _resnet(net: Network, x: str) -> str:
    x = net.op("Relu", net.batch_norm(net.conv(x, 3, into=D)))
    for _ in range(2):
        inner = net.op("Relu", net.batch_norm(net.conv(x)))
        x = net.op("Relu", net.op("Add", x, net.batch_norm(net.conv(inner, kernel=1))))
    skip = net.batch_norm(net.conv(x, kernel=1, into=2 * D), 2 * D)
    inner = net.op("Relu", net.conv(x, bias=True))
    x = net.op("Relu", net.op("Add", net.batch_norm(net.conv(inner, kernel=1, into=2 * D), 2 * D), skip))
    flat = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.op("Softmax", net.op("Gemm", flat, net.weight(2 * D, 5)), axis=-1)


def _mobile(net: Network, x: str) -> str:
    x = net.conv(x, 3, into=D, bias=True)
    for _ in range(2):
        wide = net.op("Clip", net.conv(x, kernel=1, into=2 * D, bias=True), net.const(0.0), net.const(6.0))
        x = net.op("Add", x, net.conv(wide, 2 * D, kernel=1, into=D, bias=True))
    return net.op("ReduceMean", x, axes=[2, 3])


def _fill_image(net: Network, x: str) -> str:
    x = net.conv(net.op("Log", x), 3, into=D)
    for _ in range(2):
        x = net.op("Add", x, net.conv(net.op("Relu", net.conv(x, bias=True)), bias=True))
    return net.op("GlobalMaxPool", x)


def _half() -> ModelProto:
    net = Network(7, dtype="float16")
    x = net.op("Cast", "x", to=TensorProto.FLOAT16)
    x = net.blocks(net.op("MatMul", x, net.weight(D, D)), norm=net.norm)
    net.op("Cast", x, to=FLOAT, out="y")
    return net.model([("x", FLOAT, TOKENS)], "y")


def _quantised() -> ModelProto:
    net = Network(8)

    def rounded(value: str, step: float = 0.05) -> str:
        pair = (net.const(step), net.const(128, np.uint8))
        return net.op("DequantizeLinear", net.op("QuantizeLinear", value, *pair), *pair)

    x = rounded(net.op("MatMul", "x", net.weight(D, D)))
    for _ in range(2):
        hidden = rounded(net.op("Relu", net.op("MatMul", x, net.weight(D, 2 * D))))
        x = rounded(net.op("Add", x, rounded(net.op("MatMul", hidden, net.weight(2 * D, D)))))
    net.op("MatMul", x, net.weight(D, 4), out="y")
    return net.model([("x", FLOAT, TOKENS)], "y")


def _fused() -> ModelProto:
    """What ONNX Runtime's optimiser makes of attention and linear layers."""
    net = Network(16)

    def op(kind: str, *inputs: str, **attributes: Any) -> str:
        return net.op(kind, *inputs, domain=MICROSOFT, **attributes)

    def vector(width: int) -> str:
        return net.const(net.rng.normal(0, 0.3, width))

    x = op("FusedMatMul", "x", net.weight(D, D), alpha=0.8, transB=1)
    for _ in range(2):
        attended = op("Attention", net.norm(x), net.weight(D, 3 * D), vector(3 * D), num_heads=2)
        x = net.op("Add", x, attended)
        hidden = op("BiasGelu", net.op("MatMul", net.norm(x), net.weight(D, 2 * D)), vector(2 * D))
        x = net.op("Add", x, op("FusedMatMul", hidden, net.weight(2 * D, D), alpha=1.2))
    net.op("Einsum", x, net.weight(D, 4), equation="nth,ho->nto", out="y")
    return net.model([("x", FLOAT, TOKENS)], "y")


def networks() -> dict[str, Callable[[], ModelProto]]:
    """Returns name to what builds the network."""
    return {
        "plain": lambda: _tokens(lambda net, x: net.blocks(x, 3)),
        "pre_norm": lambda: _tokens(lambda net, x: net.norm(net.blocks(x, 3, norm=net.norm)), seed=1),
        "post_norm": lambda: _tokens(lambda net, x: net.norm(net.blocks(net.norm(net.blocks(x, 1)), 1)), seed=2),
        "spelled_pre_norm": lambda: _tokens(
            lambda net, x: net.spelled_norm(net.blocks(x, 2, norm=net.spelled_norm)), seed=3, opset=13
        ),
        "spelled_post_norm": lambda: _tokens(
            lambda net, x: net.spelled_norm(net.blocks(net.spelled_norm(net.blocks(x, 1)), 1)), seed=4, opset=13
        ),
        "norm_as_branch": lambda: _tokens(
            lambda net, x: net.op("Add", x, net.spelled_norm(net.blocks(x, 2))), seed=5, opset=13
        ),
        "log_front_end": lambda: _tokens(_log, seed=6),
        "root_front_end": lambda: _tokens(_root, seed=7),
        "saturated_softmax": lambda: _tokens(_saturated, seed=8),
        "banned_classes": lambda: _tokens(_banned, seed=9),
        "pixels_and_scores": lambda: _tokens(_pixels_and_scores, seed=10),
        "silent_output": lambda: _tokens(_silent, seed=11),
        "masked_path": _masked,
        "ids": _ids,
        "resnet": lambda: _images(_resnet, 12),
        "mobilenet": lambda: _images(_mobile, 13),
        "log_image": lambda: _images(_fill_image, 14),
        "half_inside": _half,
        "quantised": _quantised,
        "fused": _fused,
        "two_heads": _two_heads,
    }


def _two_heads() -> ModelProto:
    net = Network(15)
    trunk = net.blocks(net.op("MatMul", "x", net.weight(D, D)), norm=net.norm)
    net.op("Tanh", net.op("Mul", trunk, net.const(1e3)), out="signs")
    net.op("Softmax", net.op("Mul", trunk, net.const(1e3)), axis=-1, out="picks")
    return net.model([("x", FLOAT, TOKENS)], "signs", "picks")
