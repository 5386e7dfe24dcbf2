"""What operators demand of the sizes of their inputs, and the sizes of what they make."""

from __future__ import annotations

from . import arithmetic, attention, spatial
from .graph import Call, Rule, broadcast, table_of
from .sizes import Dim, plus, symbols_of, total


def _same(call: Call) -> None:
    call.put(call.shape())
    call.carry(0)


def _elementwise(call: Call) -> None:
    call.put(broadcast(call, [call.shape(i) for i in range(len(call.inputs))]))
    arithmetic.elementwise(call)


def _compared(call: Call) -> None:
    """A comparison with positions makes a mask of lengths: one whole number a row, up to the end of the positions."""
    _elementwise(call)
    for ours, theirs in ((0, 1), (1, 0)):
        top = call.walk.tops.get(call.name(theirs))
        for name, added in call.walk.flows.get(call.name(ours), ()) if top is not None else ():
            value = call.walk.inputs[name]
            if len(value.shape) == 1 and value.shape[0] == top:
                continue  # positions themselves, of a causal mask
            if len(value.shape) < 2 or value.shape[1:] == (1,):
                value.uses.add("lengths")
                value.tops.append(plus(top, -added))


def _per_channel(axis: int) -> Rule:
    """Operators whose second input holds one number for each channel."""

    def rule(call: Call) -> None:
        at = call.attribute("axis", axis) if axis < 0 else axis
        scale = call.shape(1)
        if scale is not None:
            for i in range(1, len(scale) + 1) if axis < 0 else (1,):
                call.equal(call.dim(0, -i if axis < 0 else at), scale[-i])
        call.put(call.shape())

    return rule


def _skip_norm(call: Call) -> None:
    shape = broadcast(call, [call.shape(0), call.shape(1)])
    call.equal(call.dim(0, -1), call.dim(2, 0))
    call.put(shape)
    call.put(shape, 3)


def _matmul(weight: int = 1) -> Rule:
    def rule(call: Call) -> None:
        a, b = call.shape(0), call.shape(weight)
        if a is None or b is None or not a or not b:
            return
        flipped = [bool(call.attribute(name, 0)) for name in ("transA", "transB")]
        if flipped[0] and len(a) > 1:
            a = (*a[:-2], a[-1], a[-2])
        if flipped[1] and len(b) > 1:
            b = (*b[:-2], b[-1], b[-2])
        call.equal(a[-1], b[-2] if len(b) > 1 else b[0])
        batch = broadcast(call, [a[:-2], b[:-2]])
        if batch is not None:
            call.put((*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else ())))

    return rule


def _gemm(call: Call) -> None:
    a, b = call.shape(0), call.shape(1)
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return
    rows, inner = a[::-1] if call.attribute("transA", 0) else a
    other, columns = b[::-1] if call.attribute("transB", 0) else b
    call.equal(inner, other)
    call.put((rows, columns))


def _matmul_blocks(call: Call) -> None:
    """MatMulNBits and its kin: K and N are attributes."""
    shape, columns, inner = call.shape(), call.attribute("N"), call.attribute("K")
    if shape and columns is not None:
        call.equal(shape[-1], inner)
        call.put((*shape[:-1], columns))


def _reduce(call: Call) -> None:
    shape = call.shape()
    if shape is None:
        return
    axes = call.ints(1, "axes") if len(call.inputs) < 2 or call.numbers(1) is not None else None
    if len(call.inputs) > 1 and axes is None:
        return
    if axes is None and call.attribute("noop_with_empty_axes", 0):
        call.put(shape)
        return
    every = {a % len(shape) for a in axes} if axes else set(range(len(shape)))
    kept = call.attribute("keepdims", 1)
    call.put([1 if i in every else d for i, d in enumerate(shape) if kept or i not in every])
    arithmetic.reduce(call)


def _arg(call: Call) -> None:
    shape = call.shape()
    if shape:
        axis = call.attribute("axis", 0) % len(shape)
        kept = call.attribute("keepdims", 1)
        call.put([1 if i == axis else d for i, d in enumerate(shape) if kept or i != axis])


def _transpose(call: Call) -> None:
    shape = call.shape()
    if shape is not None:
        order = call.attribute("perm") or range(len(shape))[::-1]
        call.put([shape[i] for i in order])
    call.carry(0)


def _concat(call: Call) -> None:
    count = len(call.inputs)
    call.carry(*range(count))
    arithmetic.concat(call)
    shapes = [call.shape(i) for i in range(count)]
    known = [shape for shape in shapes if shape is not None]
    if not known or not known[0] or len({len(shape) for shape in known}) > 1:
        return
    axis = call.attribute("axis", 0) % len(known[0])
    result: list[Dim] = []
    for at in range(len(known[0])):
        for shape in known[1:]:
            if at != axis:
                call.equal(known[0][at], shape[at])
        sizes = [shape[at] for shape in known if shape[at] is not None]
        result.append((sizes or [None])[0])
    result[axis] = total(shape[axis] for shape in known) if len(known) == count else None
    call.put(result)
    attention.concat(call, axis)


def _split(call: Call) -> None:
    shape = call.shape()
    if not shape:
        return
    axis, parts = call.attribute("axis", 0) % len(shape), len(call.outputs)
    given = call.numbers(1) if len(call.inputs) > 1 else call.attribute("split")
    if given is not None and len(given) == parts:
        sizes: list[Dim] = list(given)
        call.equal(shape[axis], total(sizes))
    else:
        whole = shape[axis]
        sizes = [whole // parts if isinstance(whole, int) and whole % parts == 0 else None] * parts
    for i, size in enumerate(sizes):
        call.put((*shape[:axis], size, *shape[axis + 1 :]), i)
        if call.name(0) in call.walk.flows and call.outputs[i]:
            call.walk.flows[call.outputs[i]] = call.walk.flows[call.name(0)]


def _gather(call: Call) -> None:
    shape, indices = call.shape(0), call.shape(1)
    axis = call.attribute("axis", 0)
    if shape:
        call.below(1, shape[axis])
        if indices is not None:
            axis %= len(shape)
            call.put((*shape[:axis], *indices, *shape[axis + 1 :]))
    call.carry(0)
    arithmetic.gather(call)


def _gather_elements(call: Call) -> None:
    call.put(call.shape(1))
    call.below(1, call.dim(0, call.attribute("axis", 0)))


def _gather_nd(call: Call) -> None:
    data, indices, batch = call.shape(0), call.shape(1), call.attribute("batch_dims", 0)
    if data is None or indices is None or not isinstance(indices[-1], int):
        return
    for dim in data[batch : batch + indices[-1]]:
        call.below(1, dim)
    call.put((*indices[:-1], *data[batch + indices[-1] :]))


def _scatter(call: Call) -> None:
    call.put(call.shape())
    call.below(1, call.dim(0, call.attribute("axis", 0)))


def _scatter_nd(call: Call) -> None:
    data, indices = call.shape(0), call.shape(1)
    if data is not None and indices:
        depth = indices[-1] if isinstance(indices[-1], int) else 1
        for dim in data[:depth]:
            call.below(1, dim)
    call.put(data)


def _one_hot(call: Call) -> None:
    shape, depth = call.shape(), call.numbers(1)
    if depth is not None:
        call.below(0, depth[0])
    if shape is not None:
        axis = call.attribute("axis", -1) % (len(shape) + 1)
        call.put((*shape[:axis], depth[0] if depth else None, *shape[axis:]))


def _recurrent(call: Call) -> None:
    x, weight = call.shape(0), call.shape(1)
    if x is None or len(x) != 3 or weight is None:
        return
    time, batch = (x[1], x[0]) if call.attribute("layout", 0) else (x[0], x[1])
    call.equal(x[2], weight[2])
    call.use(4, "lengths")
    call.sizes.batch.update(symbols_of(batch))
    directions, hidden = weight[0], call.attribute("hidden_size") or call.dim(2, 2)
    for i in (5, 6):
        for at, dim in enumerate((directions, batch, hidden)):
            call.equal(call.dim(i, at), dim)
    if not call.attribute("layout", 0):
        call.put((time, directions, batch, hidden))
        call.put((directions, batch, hidden), 1)
        call.put((directions, batch, hidden), 2)


def laurel(call: Call) -> None:
    """Our own operators: x and f have one shape, and so has what comes out."""
    shape = broadcast(call, [call.shape(0), call.shape(1)])
    call.put(shape)
    call.put(shape, 1)


def _gather_blocks(call: Call) -> None:
    """GatherBlockQuantized: rows of a quantised table."""
    shape, indices = call.shape(0), call.shape(1)
    if shape and not call.attribute("gather_axis", 0):
        call.below(1, shape[0])
        if indices is not None:
            call.put((*indices, *[None] * (len(shape) - 1)))


def _embed(call: Call) -> None:
    shape, rows = call.shape(0), (call.shape(2), call.shape(3), call.shape(4))
    for index, table in ((0, rows[0]), (1, rows[2])):
        if table:
            call.below(index, table[0])
    if shape is not None:
        if rows[1] and len(shape) > 1:
            call.sizes.limit(shape[1], rows[1][0])
        for dim, other in zip(shape, call.shape(1) or (), strict=False):
            call.equal(dim, other)
        call.put((*shape, rows[0][-1] if rows[0] else None))


RULES: dict[str, Rule] = {
    **table_of(
        _same, "Relu LeakyRelu Elu Selu Celu ThresholdedRelu Sigmoid HardSigmoid HardSwish Tanh Softplus Softsign"
    ),
    **table_of(
        _same, "Erf Gelu Mish QuickGelu FastGelu BiasGelu Swish Sqrt Exp Log Abs Sign Floor Ceil Round Reciprocal"
    ),
    **table_of(
        _same, "Sin Cos Tan Asin Acos Atan Sinh Cosh Not IsNaN IsInf Dropout Softmax LogSoftmax Hardmax Clip Trilu"
    ),
    **table_of(_same, "LpNormalization MeanVarianceNormalization LRN QuantizeLinear DequantizeLinear QMoE MoE"),
    **table_of(_same, "GroupNormalization GroupNorm"),
    **table_of(_elementwise, "Add Sub Mul Div Pow Min Max Sum Mean And Or Xor Equal"),
    **table_of(_compared, "Greater Less GreaterOrEqual LessOrEqual"),
    **table_of(_elementwise, "Mod PRelu BitShift BitwiseAnd BitwiseOr BitwiseXor Where"),
    **table_of(_reduce, "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare"),
    **table_of(_reduce, "ReduceLogSumExp"),
    **table_of(_arg, "ArgMax ArgMin"),
    **table_of(_per_channel(1), "BatchNormalization InstanceNormalization"),
    **table_of(_per_channel(-1), "LayerNormalization RMSNormalization SimplifiedLayerNormalization"),
    **table_of(_skip_norm, "SkipLayerNormalization SkipSimplifiedLayerNormalization"),
    **table_of(_matmul(), "MatMul FusedMatMul MatMulInteger"),
    **table_of(_gemm, "Gemm FusedGemm"),
    **table_of(_matmul_blocks, "MatMulNBits MatMulBnb4 MatMulFpQ4"),
    "QLinearMatMul": _matmul(3),
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    **table_of(_scatter, "ScatterElements Scatter"),
    "ScatterND": _scatter_nd,
    "OneHot": _one_hot,
    **table_of(_recurrent, "LSTM GRU RNN"),
    "EmbedLayerNormalization": _embed,
    "GatherBlockQuantized": _gather_blocks,
    **arithmetic.RULES,
    **attention.RULES,
    **spatial.RULES,
}
