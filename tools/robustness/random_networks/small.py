"""Small pieces that blocks and tails are made of: reductions, activations and norms in the form of each opset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .network import Network, Value


def reduced(net: Network, op: str, x: Value, axes: Sequence[int], keep: bool = True) -> Value:
    """Adds a reduction; its axes are an attribute or an input after the opset."""
    shape = [1 if i in axes else d for i, d in enumerate(x.shape) if keep or i not in axes]
    as_input = net.opset >= (13 if op == "ReduceSum" else 18)
    given = [int(a) - x.rank if net.opset >= 11 and net.chance(0.5) else int(a) for a in axes]
    if as_input:
        return net.node(op, [x, net.integers(given)], shape, keepdims=int(keep))
    return net.node(op, [x], shape, axes=given, keepdims=int(keep))


def squeezed(net: Network, x: Value, axes: Sequence[int]) -> Value:
    """Drops axes of size 1."""
    shape = [d for i, d in enumerate(x.shape) if i not in axes]
    if net.opset >= 13:
        return net.node("Squeeze", [x, net.integers(axes)], shape)
    return net.node("Squeeze", [x], shape, axes=list(axes))


def unsqueezed(net: Network, x: Value, axis: int) -> Value:
    """Adds an axis of size 1."""
    shape = [*x.shape[:axis], 1, *x.shape[axis:]]
    if net.opset >= 13:
        return net.node("Unsqueeze", [x, net.integers([axis])], shape)
    return net.node("Unsqueeze", [x], shape, axes=[axis])


def clipped(net: Network, x: Value, low: float | None, high: float | None) -> Value:
    """Clips; bounds are attributes before opset 11."""
    if net.opset >= 11:
        bounds = ["" if bound is None else net.constant(bound) for bound in (low, high)]
        return net.node("Clip", [x, *bounds], x.shape)
    given = {name: float(bound) for name, bound in (("min", low), ("max", high)) if bound is not None}
    return net.node("Clip", [x], x.shape, **given)


def dropped(net: Network, x: Value) -> Value:
    """Adds a Dropout, which does nothing at inference."""
    if net.opset < 12:
        return net.node("Dropout", [x], x.shape, ratio=0.3)
    if net.chance(0.5):
        return net.node("Dropout", [x], x.shape)
    ratio, training = net.fresh("w"), net.fresh("w")
    net.weights |= {ratio: np.asarray(0.3, np.float32), training: np.asarray(False)}
    return net.node("Dropout", [x, ratio, training], x.shape)


def activated(net: Network, x: Value) -> Value:
    """Adds an activation."""
    kind = net.choose(
        ("Relu", "Relu", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "relu6", "gelu", "silu", "Elu", "Abs", "max", "neg")
    )
    if net.dtype == "float64":  # ONNX Runtime has few operators of doubles
        kind = net.choose(("Relu", "Sigmoid", "Tanh", "Abs"))
    if kind == "PRelu":
        slope = net.constant(net.rng.uniform(0, 0.5, (x.shape[1], *[1] * (x.rank - 2)) if x.rank > 2 else (1,)))
        return net.node("PRelu", [x, slope], x.shape)
    if kind == "relu6":
        return clipped(net, x, 0.0, 6.0)
    if kind == "gelu":
        inner = net.node("Erf", [net.node("Div", [x, net.constant(np.sqrt(2))], x.shape)], x.shape)
        product = net.node("Mul", [x, net.node("Add", [inner, net.constant(1.0)], x.shape)], x.shape)
        return net.node("Mul", [product, net.constant(0.5)], x.shape)
    if kind == "silu":
        return net.node("Mul", [x, net.node("Sigmoid", [x], x.shape)], x.shape)
    if kind == "max":
        return net.node("Max", [x, net.constant(-0.3)], x.shape)
    if kind == "neg":
        return net.node("Relu", [net.node("Neg", [x], x.shape)], x.shape)
    return net.node(str(kind), [x], x.shape)


def vector(net: Network, width: int, shift: float = 0.0) -> str:
    """A weight (D,), now and then (1,), (1, D) or a number where the operator would take that too."""
    kind = net.choose(("D",) * 7 + ("1", "1D", "number"))
    shape = {"D": (width,), "1": (1,), "1D": (1, width), "number": ()}[kind]
    return net.constant(net.rng.normal(shift, 0.4, shape))


def layer_norm(net: Network, x: Value) -> Value:
    """A norm over the last axis: the operator, or spelled out in one of several ways."""
    width, last = x.shape[-1], [x.rank - 1]
    if net.opset >= 17 and net.chance(0.5):
        gains = [net.weight((width,), 0.3, 1.0), net.weight((width,), 0.3)]
        return net.node("LayerNormalization", [x, *gains], x.shape, axis=-1, epsilon=1e-5)
    if net.opset >= 23 and net.chance(0.5):
        return net.node("RMSNormalization", [x, net.weight((width,), 0.3, 1.0)], x.shape, axis=-1, epsilon=1e-5)
    kind = net.choose(("layer", "layer", "rms", "rms", "l2", "Lp"))
    if kind == "Lp":
        return net.node("LpNormalization", [x], x.shape, axis=-1, p=2)
    if kind == "l2":
        norm = reduced(net, "ReduceL2", x, last)
        return net.node("Div", [x, clipped(net, norm, 1e-6, None)], x.shape)
    centred = x
    if kind == "layer":
        mean = reduced(net, "ReduceMean", x, last)
        centred = net.node("Sub", [x, mean], x.shape)
        if net.chance(0.12):
            net.outputs.append(mean.name)
    square = (
        net.node("Mul", [centred, centred], x.shape)
        if net.chance(0.5)
        else net.node("Pow", [centred, net.constant(2.0)], x.shape)
    )
    variance = reduced(net, "ReduceMean", square, last)
    deviation = net.node("Sqrt", [net.node("Add", [variance, net.constant(1e-3)], variance.shape)], variance.shape)
    if net.chance(0.08):
        net.outputs.append(net.choose((variance, deviation)).name)
    if net.chance(0.6):
        normed = net.node("Div", [centred, deviation], x.shape)
    else:
        normed = net.node("Mul", [centred, net.node("Reciprocal", [deviation], deviation.shape)], x.shape)
    scaled = net.node("Mul", [normed, vector(net, width, 1.0)], x.shape)
    return net.node("Add", [scaled, vector(net, width)], x.shape) if kind == "layer" else scaled


def channel_norm(net: Network, x: Value) -> Value:
    """A norm of channels on axis 1."""
    width = x.shape[1]
    kinds = ["batch"] * 4 + ["instance"] + ["LRN"] * (x.rank == 4) + ["group"] * (net.opset >= 18 and width % 2 == 0)
    kind = net.choose(kinds)
    if kind == "LRN":
        return net.node("LRN", [x], x.shape, size=3)
    if kind == "instance":
        gains = [net.weight((width,), 0.3, 1.0), net.weight((width,), 0.3)]
        return net.node("InstanceNormalization", [x, *gains], x.shape, epsilon=1e-4)
    if kind == "group":
        size = width if net.opset >= 21 else 2
        gains = [net.weight((size,), 0.3, 1.0), net.weight((size,), 0.3)]
        return net.node("GroupNormalization", [x, *gains], x.shape, num_groups=2, epsilon=1e-4)
    gains = [net.weight((width,), 0.3, 1.0), net.weight((width,), 0.3), net.weight((width,), 0.3)]
    variance = net.constant(net.rng.uniform(0.3, 2, width))
    return net.node("BatchNormalization", [x, *gains, variance], x.shape, epsilon=1e-4)
