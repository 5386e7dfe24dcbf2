"""What reads the stream at the end: operators of every kind, subgraphs among them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .blocks import linear, mean_of
from .network import ELEMENTS, Network, Value
from .small import clipped, layer_norm, reduced, squeezed, unsqueezed


def head(net: Network, x: Value, tokens: bool) -> None:
    """Adds one to three readers of the stream; each makes an output."""
    for _ in range(int(net.rng.integers(1, 4))):
        tail: Callable[[Network, Value, bool], Value] = net.choose(_TAILS)
        y = tail(net, x, tokens)
        net.outputs.append(y.name)
    if net.chance(0.15):
        net.outputs.append(x.name)


def _features(net: Network, x: Value, tokens: bool) -> Value:
    return linear(net, mean_of(net, x, tokens), 3)


def _pooled(net: Network, x: Value, tokens: bool) -> Value:
    if tokens:
        return _features(net, x, tokens)
    pooled = net.node("GlobalAveragePool", [x], (*x.shape[:2], *[1] * (x.rank - 2)))
    kind = net.choose(("Flatten", "Reshape", "Squeeze", "groups"))
    if kind == "Flatten":
        flat = net.node("Flatten", [pooled], x.shape[:2])
    elif kind == "Squeeze":
        flat = squeezed(net, pooled, list(range(2, x.rank)))
    elif kind == "groups" and x.shape[1] % 4 == 0:
        flat = net.node("Reshape", [pooled, net.integers([-1, 4])], (x.shape[0] * x.shape[1] // 4, 4))
    else:
        flat = net.node("Reshape", [pooled, net.integers([-1, x.shape[1]])], x.shape[:2])
    return linear(net, flat, 3)


def _softmax(net: Network, x: Value, _tokens: bool) -> Value:
    return net.node("Softmax", [x], x.shape, axis=x.rank - 1)


def _best(net: Network, x: Value, _tokens: bool) -> Value:
    op = net.choose(("ArgMax", "ArgMin"))
    return net.node(op, [x], (*x.shape[:-1], 1), axis=x.rank - 1)


def _compared(net: Network, x: Value, _tokens: bool) -> Value:
    op = net.choose(("Greater", "Less"))
    mask = net.node(op, [x, net.constant(0.2)], x.shape)
    if net.chance(0.5):
        return net.node("Cast", [mask], x.shape, to=ELEMENTS[net.dtype][0])
    return net.node("Where", [mask, x, net.constant(net.choose((-1e4, 0.0, -3.0)))], x.shape)


def _top(net: Network, x: Value, _tokens: bool) -> Value:
    shape = (*x.shape[:-1], 2)
    if net.opset >= 10:
        return net.several("TopK", [x, net.integers([2])], [shape, shape], axis=x.rank - 1)[0]
    return net.several("TopK", [x], [shape, shape], axis=x.rank - 1, k=2)[0]


def _sliced(net: Network, x: Value, _tokens: bool) -> Value:
    half = x.shape[-1] // 2
    if net.opset >= 10:
        given = [net.integers([0]), net.integers([half]), net.integers([x.rank - 1])]
        return net.node("Slice", [x, *given], (*x.shape[:-1], half))
    return net.node("Slice", [x], (*x.shape[:-1], half), starts=[0], ends=[half], axes=[x.rank - 1])


def _split(net: Network, x: Value, _tokens: bool) -> Value:
    half, axis = x.shape[1] // 2, 1
    sizes, shapes = (
        [half, x.shape[1] - half],
        [(x.shape[0], half, *x.shape[2:]), (x.shape[0], x.shape[1] - half, *x.shape[2:])],
    )
    if net.opset >= 13:
        a, b = net.several("Split", [x, net.integers(sizes)], shapes, axis=axis)
    else:
        a, b = net.several("Split", [x], shapes, axis=axis, split=sizes)
    return net.node(
        "Concat",
        [b, a, net.constant(np.ones((1,) * x.rank)) if x.shape[0] == 1 and x.rank == 2 else a],
        (x.shape[0], x.shape[1] + half, *x.shape[2:]),
        axis=1,
    )


def _padded(net: Network, x: Value, _tokens: bool) -> Value:
    pads = [0] * (x.rank - 1) + [1] + [0] * (x.rank - 1) + [2]
    shape = (*x.shape[:-1], x.shape[-1] + 3)
    fill = net.choose((0.0, 0.7))
    if net.opset >= 11:
        return net.node("Pad", [x, net.integers(pads), net.constant(fill)], shape)
    return net.node("Pad", [x], shape, pads=pads, value=float(fill))


def _normed(net: Network, x: Value, _tokens: bool) -> Value:
    return layer_norm(net, x)


def _powers(net: Network, x: Value, _tokens: bool) -> Value:
    kind = net.choose(("Pow", "ReduceSumSquare", "ReduceL1", "ReduceMax", "Exp", "Reciprocal", "square"))
    if kind == "Pow":
        return net.node("Pow", [x, net.constant(float(net.choose((2.0, 3.0))))], x.shape)
    if kind == "Exp":
        return net.node("Exp", [clipped(net, x, -3.0, 3.0)], x.shape)
    if kind == "Reciprocal":
        positive = net.node("Add", [net.node("Abs", [x], x.shape), net.constant(1.0)], x.shape)
        return net.node("Reciprocal", [positive], x.shape)
    if kind == "square":
        return net.node("Add", [x, net.node("Mul", [x, x], x.shape)], x.shape)
    return reduced(net, str(kind), x, [x.rank - 1], keep=net.chance(0.5))


def _summed(net: Network, x: Value, _tokens: bool) -> Value:
    if net.opset >= 11 and net.dtype != "float16":
        axis = net.fresh("i")
        net.weights[axis] = np.asarray(1, np.int64)
        return net.node("CumSum", [x, axis], x.shape)
    return reduced(net, "ReduceSum", x, [1])


def _gathered(net: Network, x: Value, _tokens: bool) -> Value:
    if net.chance(0.5):
        return net.node("Gather", [x, net.integers([1, 0])], (*x.shape[:-1], 2), axis=x.rank - 1)
    best = net.node("ArgMax", [x], (*x.shape[:-1], 1), axis=x.rank - 1)
    return net.node("Gather", [net.weight((x.shape[-1], 3), 1.0), best], (*x.shape[:-1], 1, 3))


def _stacked(net: Network, x: Value, _tokens: bool) -> Value:
    wide = unsqueezed(net, x, 1)
    other = net.constant(net.rng.normal(0, 1, (1, *x.shape[1:])))
    mixed = net.node("Add", [x, other], x.shape)
    return net.node("Concat", [wide, unsqueezed(net, mixed, 1)], (x.shape[0], 2, *x.shape[1:]), axis=1)


def _isnan(net: Network, x: Value, _tokens: bool) -> Value:
    if net.dtype == "bfloat16":
        return _softmax(net, x, _tokens)
    return net.node("Not", [net.node("IsNaN", [x], x.shape)], x.shape)


def _moved(net: Network, x: Value, _tokens: bool) -> Value:
    """Operators that move, repeat or choose elements."""
    kind = net.choose(("Tile", "Transpose", "Expand", "Min", "Equal"))
    if kind == "Tile":
        return net.node("Tile", [x, net.integers([1] * (x.rank - 1) + [2])], (*x.shape[:-1], 2 * x.shape[-1]))
    if kind == "Transpose":
        given = {"perm": [0, *range(x.rank - 1, 0, -1)]} if net.chance(0.7) else {}
        shape = (x.shape[0], *x.shape[:0:-1]) if given else x.shape[::-1]
        return net.node("Transpose", [x], shape, **given)
    if kind == "Expand":
        return net.node("Expand", [x, net.integers([2, *[1] * x.rank])], (2, *x.shape))
    if kind == "Equal" and net.opset >= 11:
        return net.node("Not", [net.node("Equal", [x, net.constant(0.25)], x.shape)], x.shape)
    return net.node("Min", [x, net.constant(net.rng.normal(0, 1, x.shape[-1:]))], x.shape)


def _branching(net: Network, x: Value, _tokens: bool) -> Value:
    """An If whose branches read the stream, and a weight that the main graph reads, too."""
    total = reduced(net, "ReduceSum", x, list(range(x.rank)), keep=False)
    condition = net.node("Greater", [total, net.constant(-1e9 if net.dtype != "float16" else -6e4)], ())
    shared = net.fresh("w")
    net.weights[shared] = np.asarray(net.rng.normal(0, 1, x.shape[-1:]), ELEMENTS[net.dtype][1])
    main = net.node("Mul", [x, shared], x.shape)
    graphs = []
    for op in ("Mul", "Add"):
        out = net.fresh("inner")
        inner = net.fresh("inner")
        nodes = [helper.make_node(op, [x.name, shared], [inner]), helper.make_node("Relu", [inner], [out])]
        value = helper.make_tensor_value_info(out, ELEMENTS[net.dtype][0], None)
        graphs.append(helper.make_graph(nodes, f"g_{out}", [], [value]))
    y = net.node("If", [condition], x.shape, then_branch=graphs[0], else_branch=graphs[1])
    net.outputs.append(main.name)
    return y


def _looping(net: Network, x: Value, _tokens: bool) -> Value:
    """A Loop that adds the stream to itself a few times."""
    state, count, going = (net.fresh(word) for word in ("state", "count", "going"))
    out, keep = net.fresh("out"), net.fresh("keep")
    body = helper.make_graph(
        [helper.make_node("Add", [state, x.name], [out]), helper.make_node("Identity", [going], [keep])],
        f"body_{out}",
        [
            helper.make_tensor_value_info(count, TensorProto.INT64, []),
            helper.make_tensor_value_info(going, TensorProto.BOOL, []),
            helper.make_tensor_value_info(state, ELEMENTS[net.dtype][0], None),
        ],
        [helper.make_tensor_value_info(keep, TensorProto.BOOL, []), onnx.ValueInfoProto(name=out)],
    )
    body.output[1].type.CopyFrom(helper.make_tensor_type_proto(ELEMENTS[net.dtype][0], None))
    trips, going_in = net.fresh("w"), net.fresh("w")
    net.nodes.append(helper.make_node("Constant", [], [trips], value=numpy_helper.from_array(np.asarray(2, np.int64))))
    net.nodes.append(helper.make_node("Constant", [], [going_in], value=numpy_helper.from_array(np.asarray(True))))
    return net.node("Loop", [trips, going_in, x], x.shape, body=body)


_TAILS = (
    _features,
    _features,
    _pooled,
    _pooled,
    _softmax,
    _best,
    _compared,
    _top,
    _sliced,
    _split,
    _padded,
    _normed,
    _powers,
    _summed,
    _gathered,
    _stacked,
    _isnan,
    _moved,
    _branching,
    _looping,
)
