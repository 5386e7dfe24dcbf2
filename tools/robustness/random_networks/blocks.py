"""Branches, joins and streams of random networks."""

from __future__ import annotations

from typing import Any

import numpy as np

from .network import ELEMENTS, Network, Value
from .small import activated, channel_norm, clipped, dropped, layer_norm, reduced, vector


def quantised(net: Network, x: Value, step: float = 0.05) -> Value:
    """Rounds a value to bytes and back."""
    kind = np.uint8 if net.chance(0.5) else np.int8
    scale, zero = net.fresh("w"), net.fresh("w")
    net.weights |= {scale: np.asarray(step, np.float32), zero: np.asarray(128 if kind is np.uint8 else 0, kind)}
    return net.node("DequantizeLinear", [net.node("QuantizeLinear", [x, scale, zero], x.shape), scale, zero], x.shape)


def _matrix(net: Network, shape: tuple[int, ...], quantise: bool) -> str:
    """A weight, dequantised where the network is quantised."""
    if not quantise:
        return net.weight(shape)
    held, scale = net.fresh("w"), net.fresh("w")
    net.weights[held] = net.rng.integers(-127, 128, shape).astype(np.int8)
    net.weights[scale] = np.asarray(0.012 / np.sqrt(np.prod(shape[1:] if len(shape) > 2 else shape[:1])), np.float32)
    return net.node("DequantizeLinear", [held, scale], shape).name


def linear(net: Network, x: Value, width: int, quantise: bool = False) -> Value:
    """A linear layer on the last axis: MatMul, MatMul with a bias in either order, or Gemm."""
    shape = (*x.shape[:-1], width)
    if x.rank == 2 and net.chance(0.5) and not quantise:
        turned = net.chance(0.5)
        weight = net.weight((width, x.shape[1]) if turned else (x.shape[1], width))
        bias = [vector(net, width)] if net.chance(0.7) or net.opset < 11 else []
        factors = {"alpha": 0.7, "beta": 1.3} if net.chance(0.15) else {}
        return net.node("Gemm", [x, weight, *bias], shape, transB=int(turned), **factors)
    y = net.node("MatMul", [x, _matrix(net, (x.shape[-1], width), quantise)], shape)
    if net.chance(0.6):
        pair: list[Value | str] = [y, vector(net, width)]
        y = net.node("Add", pair if net.chance(0.7) else pair[::-1], shape)
    return y


def convolved(net: Network, x: Value, width: int, kernel: int, quantise: bool = False, group: int = 1) -> Value:
    """A convolution of stride 1 that keeps the size."""
    spatial = x.rank - 2
    weight = _matrix(net, (width, x.shape[1] // group, *[kernel] * spatial), quantise)
    inputs: list[Value | str] = [x, weight]
    if net.chance(0.5):
        inputs.append(net.weight((width,), 0.3))
    pads = [kernel // 2] * (2 * spatial)
    named = kernel > 1 or net.chance(0.5)
    given: dict[str, Any] = {"kernel_shape": [kernel] * spatial, "pads": pads} if named else {}
    if kernel > 1 and net.chance(0.2):
        given = {"auto_pad": "SAME_UPPER", "kernel_shape": [kernel] * spatial}
    return net.node("Conv", inputs, (x.shape[0], width, *x.shape[2:]), group=group, **given)


def token_branch(net: Network, x: Value, quantise: bool) -> Value:
    """f(x) of a stream whose features are on the last axis."""
    width = x.shape[-1]
    kind = net.choose(("mlp",) * 5 + ("attention",) * 2 + ("narrow", "linear", "product", "where", "normed", "nested"))
    if quantise:
        kind = "mlp"
    h = layer_norm(net, x) if net.chance(0.4) and not quantise else x
    if kind == "attention" and x.rank == 3:
        f = _attention(net, h)
    elif kind == "narrow":
        f = net.node("MatMul", [h, net.weight((width, 1))], (*x.shape[:-1], 1))
        f = net.node("Add", [f, net.weight((width,), 0.5)], x.shape)
    elif kind == "linear":
        f = linear(net, h, width)
    elif kind == "product":
        gate = net.node("Sigmoid", [linear(net, h, width)], x.shape)
        f = net.node("Mul", [linear(net, h, width), gate], x.shape)
    elif kind == "where":
        y = linear(net, activated(net, linear(net, h, width)), width)
        mask = net.node("Greater", [net.choose((y, h)), net.constant(0.1)], x.shape)
        f = net.node("Where", [mask, y, net.constant(-0.5)], x.shape)
    elif kind == "normed":
        f = layer_norm(net, linear(net, activated(net, linear(net, h, width)), width))
    elif kind == "nested":
        y = activated(net, linear(net, h, width))
        f = net.node("Add", [y, linear(net, activated(net, linear(net, y, width)), width)], x.shape)
        f = linear(net, f, width) if net.chance(0.5) else layer_norm(net, f)
    else:
        y = activated(net, linear(net, h, net.choose((width, width // 2, 2 * width)), quantise))
        f = linear(net, quantised(net, y) if quantise else y, width, quantise)
    return _tail_of_branch(net, f)


def _attention(net: Network, h: Value) -> Value:
    (n, t, d) = h.shape
    q, k, v = (linear(net, h, d) for _ in range(3))
    keys = net.node("Transpose", [k], (n, d, t), perm=[0, 2, 1])
    scores = net.node("MatMul", [q, keys], (n, t, t))
    scores = net.node("Mul", [scores, net.constant(1 / np.sqrt(d))], (n, t, t))
    if net.chance(0.4):
        mask = np.where(np.tril(np.ones((t, t))), 0, -1e4)
        scores = net.node("Add", [scores, net.constant(mask)], (n, t, t))
    weights = net.node("Softmax", [scores], (n, t, t), axis=2)
    return linear(net, net.node("MatMul", [weights, v], (n, t, d)), d)


def channel_branch(net: Network, x: Value, quantise: bool) -> Value:
    """f(x) of a stream of channels on axis 1."""
    width = x.shape[1]
    kind = net.choose(("basic",) * 4 + ("bottleneck",) * 4 + ("depthwise", "gate", "pooled", "normed", "deconv"))
    if quantise:
        kind = net.choose(("basic", "bottleneck"))
    h = activated(net, channel_norm(net, x)) if net.chance(0.25) and not quantise else x
    if kind == "basic":
        y = activated(net, _normed(net, convolved(net, h, width, 3, quantise), quantise))
        f = convolved(net, quantised(net, y) if quantise else y, width, 3, quantise)
    elif kind == "deconv":
        weight = net.weight((width, width, *[3] * (x.rank - 2)), 0.2)
        f = net.node("ConvTranspose", [h, weight], x.shape, pads=[1] * 2 * (x.rank - 2))
    elif kind == "depthwise":
        y = activated(net, convolved(net, h, 2 * width, 1))
        f = convolved(net, activated(net, convolved(net, y, 2 * width, 3, group=2 * width)), width, 1)
    elif kind == "gate":
        y = convolved(net, h, width, 3)
        pooled = net.node("GlobalAveragePool", [y], (*y.shape[:2], *[1] * (x.rank - 2)))
        gate = convolved(
            net, net.node("Relu", [convolved(net, pooled, 2, 1)], (x.shape[0], 2, *[1] * (x.rank - 2))), width, 1
        )
        f = net.node("Mul", [y, net.node("Sigmoid", [gate], gate.shape)], y.shape)
    elif kind == "pooled":
        op = net.choose(("MaxPool", "AveragePool"))
        spatial = x.rank - 2
        y = net.node(op, [h], x.shape, kernel_shape=[3] * spatial, pads=[1] * 2 * spatial, strides=[1] * spatial)
        f = convolved(net, y, width, 1)
    elif kind == "normed":
        f = channel_norm(net, convolved(net, activated(net, h), width, 3))
    else:
        y = activated(net, _normed(net, convolved(net, h, width, 1, quantise), quantise))
        f = convolved(net, quantised(net, y) if quantise else y, width, 1, quantise)
    return _tail_of_branch(net, _normed(net, f, quantise))


def _normed(net: Network, x: Value, quantise: bool) -> Value:
    return channel_norm(net, x) if net.chance(0.4) and not quantise else x


def _tail_of_branch(net: Network, f: Value) -> Value:
    for _ in range(2):
        if net.chance(0.1):
            f = dropped(net, f) if net.chance(0.5) else net.node("Identity", [f], f.shape)
    if net.chance(0.06):
        f = net.node("Mul", [f, net.constant(net.rng.normal(0, 1, f.shape[-1:]))], f.shape)
    return f


def joined(net: Network, x: Value, f: Value, tokens: bool) -> Value:
    """The residual connection."""
    if net.chance(0.12):
        g = linear(net, x, x.shape[-1]) if tokens else convolved(net, x, x.shape[1], 1)
        items = [x, f, net.node("Tanh", [g], g.shape)]
        net.rng.shuffle(items)  # type: ignore[arg-type]
        return net.node("Sum", items, x.shape)
    return net.node("Add", [x, f] if net.chance(0.5) else [f, x], x.shape)


def _narrow_join(net: Network, x: Value, f: Value) -> Value:
    """A residual connection in a 16-bit type between values of another."""
    x, f = (net.node("Cast", [v], v.shape, to=net.narrow) for v in (x, f))
    return net.node("Cast", [net.node("Add", [x, f], x.shape)], x.shape, to=ELEMENTS[net.dtype][0])


def after(net: Network, x: Value, tokens: bool) -> Value:
    """What stands between two residual connections."""
    if net.chance(0.1):
        net.outputs.append(x.name)
    if net.chance(0.4):
        return x
    if tokens:
        kind = net.choose(("norm",) * 4 + ("relu", "dropout", "bias", "act", "reshape"))
        if kind == "norm":
            return layer_norm(net, x)
        if kind == "bias":
            op = net.choose(("Add", "Mul", "Max", "Min"))
            return net.node(op, [x, net.constant(net.rng.normal(0, 1, net.choose((x.shape[-1:], (), (1,)))))], x.shape)
        if kind == "reshape" and x.rank > 2:
            flat = net.node("Reshape", [x, net.integers([-1, x.shape[-1]])], (int(np.prod(x.shape[:-1])), x.shape[-1]))
            flat = activated(net, flat) if net.chance(0.5) else flat
            return net.node("Reshape", [flat, net.integers([-1, *x.shape[1:]])], x.shape)
    else:
        kind = net.choose(("relu",) * 4 + ("norm", "act", "dropout", "bias", "resize"))
        if kind == "norm":
            return channel_norm(net, x)
        if kind == "bias":
            shape = (x.shape[1], *[1] * (x.rank - 2))
            op = net.choose(("Add", "Mul", "Max"))
            return net.node(op, [x, net.constant(net.rng.normal(0, 1, shape))], x.shape)
        if kind == "resize" and net.opset >= 11 and x.rank == 4:
            scales = net.fresh("w")
            net.weights[scales] = np.asarray([1, 1, 2, 2], np.float32)
            y = net.node(
                "Resize",
                [x, "" if net.opset > 12 else _empty(net), scales],
                (*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]),
                mode="nearest",
            )
            return net.node("MaxPool", [y], x.shape, kernel_shape=[2, 2], strides=[2, 2])
    if kind == "act":
        return activated(net, x)
    if kind == "dropout":
        return dropped(net, x)
    if net.chance(0.15):
        return clipped(net, x, -0.5, 4.0)
    return net.node("Relu", [x], x.shape)


def _empty(net: Network) -> str:
    name = net.fresh("w")
    net.weights[name] = np.zeros(0, np.float32)
    return name


def skip_of(net: Network, x: Value, tokens: bool, width: int) -> Value:
    """A projection to *width*, with or without a norm behind it."""
    if tokens:
        y = linear(net, x, width)
        return layer_norm(net, y) if net.chance(0.2) else y
    y = convolved(net, x, width, net.choose((1, 1, 3)))
    return channel_norm(net, y) if net.chance(0.4) else y


def stream(net: Network, x: Value, tokens: bool, depth: int, quantise: bool) -> Value:
    """A chain of residual connections, some with a projection as their skip."""
    made = [x]
    for _ in range(depth):
        f = token_branch(net, x, quantise) if tokens else channel_branch(net, x, quantise)
        skip = x
        if net.chance(0.2) and not quantise:
            skip = skip_of(net, x, tokens, x.shape[-1] if tokens else x.shape[1])
        elif net.chance(0.08):
            older = [value for value in made if value.shape == x.shape]
            skip = net.choose(older or [x])
        if quantise:
            f, skip = quantised(net, f), quantised(net, skip)
        x = after(net, _narrow_join(net, skip, f) if net.narrow else joined(net, skip, f, tokens), tokens)
        if quantise:
            x = quantised(net, x)
        made.append(x)
        if net.chance(0.1) and not tokens and x.shape[2] > 3:
            spatial = x.rank - 2
            shape = (*x.shape[:2], *[d // 2 for d in x.shape[2:]])
            x = net.node("AveragePool", [x], shape, kernel_shape=[2] * spatial, strides=[2] * spatial)
    if net.chance(0.3):
        net.outputs.append(net.choose(made[1:]).name)
    return x


def mean_of(net: Network, x: Value, tokens: bool) -> Value:
    """The features of *x*, (N, D)."""
    axes = list(range(1, x.rank - 1)) if tokens else list(range(2, x.rank))
    return reduced(net, "ReduceMean", x, axes, keep=False) if axes else x
