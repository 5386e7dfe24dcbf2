"""Operators that compute with sizes or change how a tensor is laid out."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto, helper

from .graph import SMALL, Call, Rule, broadcast
from .sizes import Dim, exact_quotient, plus, scaled, symbols_of, total


def elementwise(call: Call) -> None:
    """Follows sums, differences, products and quotients of integers."""
    kind = call.node.op_type
    if kind == "Where":
        call.carry(1, 2)
        _where(call)
        return
    if kind not in ("Add", "Sub", "Mul", "Div"):
        return
    a, b = call.numbers(0), call.numbers(1)
    if kind in ("Add", "Sub"):
        sign = 1 if kind == "Add" else -1
        if b is not None and len(b) == 1 and isinstance(b[0], int):
            call.carry(0, added=sign * b[0])
        elif a is not None and len(a) == 1 and isinstance(a[0], int) and sign == 1:
            call.carry(1, added=a[0])
    if a is None or b is None or not a or not b or (len(a) != len(b) and 1 not in (len(a), len(b))):
        return
    size = max(len(a), len(b))
    pairs = zip(a * (size // len(a)), b * (size // len(b)), strict=True)
    call.put_numbers([_computed(call, kind, x, y) for x, y in pairs])


def _computed(call: Call, kind: str, x: Dim, y: Dim) -> Dim:
    if kind in ("Add", "Sub"):
        return plus(x, y, 1 if kind == "Add" else -1)
    if kind == "Mul":
        return call.sizes.product((x, y))
    y = call.sizes.now(y)
    if isinstance(y, int) and y > 0:
        return call.sizes.window(x, 0, y, 0)
    return quotient(call, [x], [y])


def quotient(call: Call, over: Sequence[Dim], under: Sequence[Dim]) -> Dim:
    """Returns the product of dims over the product of others where what stays is a whole number of one sum."""
    upper, lower = call.sizes.factors(call.sizes.product(over)), call.sizes.factors(call.sizes.product(under))
    if upper is None or lower is None or lower[0] == 0:
        return None
    rest = list(upper[1])
    for one in lower[1]:
        if one not in rest:
            return None
        rest.remove(one)
    return exact_quotient(call.sizes.product([upper[0], *rest]), lower[0])


def _where(call: Call) -> None:
    condition, a, b = call.numbers(0), call.numbers(1), call.numbers(2)
    if a is None or b is None or len(a) != len(b):
        return
    if condition is not None and len(condition) == len(a):
        call.put_numbers(
            [(x if c else y) if isinstance(c, int) else None for c, x, y in zip(condition, a, b, strict=True)]
        )
    elif any(x == -1 for x in b):  # exporters put 1 for the -1 of a requested shape so
        call.put_numbers([y if y != -1 else None for y in b])


def concat(call: Call) -> None:
    """Follows lists of sizes that are put together."""
    found: list[Dim] = []
    for i in range(len(call.inputs)):
        shape, numbers = call.shape(i), call.numbers(i)
        if numbers is not None:
            found += numbers
        elif shape is not None and len(shape) == 1 and isinstance(shape[0], int) and shape[0] <= SMALL:
            found += [None] * shape[0]
        else:
            return
    if any(call.numbers(i) is not None for i in range(len(call.inputs))):
        call.put_numbers(found)


def gather(call: Call) -> None:
    """Follows a size that is taken out of a list."""
    numbers, indices = call.numbers(0), call.numbers(1)
    shape = call.shape(0)
    if numbers is not None and indices is not None and shape is not None and len(shape) == 1:
        whole = [i for i in indices if isinstance(i, int) and -len(numbers) <= i < len(numbers)]
        if len(whole) == len(indices):
            call.put_numbers([numbers[i] for i in whole])


def reduce(call: Call) -> None:
    """Follows the product or sum of a list of sizes."""
    numbers = call.numbers(0)
    if numbers is not None and (call.shape() is None or len(call.shape() or ()) == 1):
        if call.node.op_type == "ReduceProd":
            call.put_numbers([call.sizes.product(numbers)])
        elif call.node.op_type == "ReduceSum":
            call.put_numbers([total(numbers)])


def _constant(call: Call) -> None:
    name = call.outputs[0]
    for item in call.node.attribute:
        if item.name == "value":
            call.walk.put_constant(name, item.t)
        elif item.name in ("value_int", "value_ints"):
            numbers = [item.i] if item.name == "value_int" else list(item.ints)
            dims = [] if item.name == "value_int" else [len(numbers)]
            call.walk.put_constant(name, helper.make_tensor(name, TensorProto.INT64, dims, numbers))
        elif item.name in ("value_float", "value_floats"):
            call.put([] if item.name == "value_float" else [len(item.floats)])


def _shape(call: Call) -> None:
    shape = call.shape()
    if shape is None:
        return
    start, end = call.attribute("start", 0), call.attribute("end")
    part = shape[start:end]
    call.put([len(part)])
    call.put_numbers(part)


def _size(call: Call) -> None:
    shape = call.shape()
    call.put([])
    if shape is not None:
        call.put_numbers([call.sizes.product(shape)])


def _cast(call: Call) -> None:
    call.put(call.shape())
    call.carry(0)
    numbers = call.numbers(0)
    if numbers is not None:
        call.put_numbers(numbers)


def _unsqueeze(call: Call) -> None:
    shape, axes = call.shape(), call.ints(1, "axes")
    _keep_numbers(call)
    if shape is None or axes is None:
        return
    rank = len(shape) + len(axes)
    new, rest = {a % rank for a in axes}, iter(shape)
    call.put([1 if i in new else next(rest) for i in range(rank)])


def _squeeze(call: Call) -> None:
    shape = call.shape()
    _keep_numbers(call)
    if shape is None:
        return
    axes = call.ints(1, "axes")
    if axes is None and len(call.inputs) > 1 and call.name(1):
        return
    gone = {a % len(shape) for a in axes} if axes else {i for i, d in enumerate(shape) if d == 1}
    for axis in gone:
        call.equal(shape[axis], 1)
    call.put([d for i, d in enumerate(shape) if i not in gone])


def _keep_numbers(call: Call) -> None:
    call.carry(0)
    numbers = call.numbers(0)
    if numbers is not None:
        call.put_numbers(numbers)


def _reshape(call: Call) -> None:
    _keep_numbers(call)
    shape, wanted = call.shape(), call.numbers(1)
    if wanted is None and not call.name(1):
        wanted = call.attribute("shape")
    if wanted is None:
        rank = call.dim(1, 0)
        if isinstance(rank, int):
            call.put([None] * rank)
        return
    zero = not call.attribute("allowzero", 0)
    result: list[Dim] = [
        (shape[i] if shape is not None and i < len(shape) else None) if d == 0 and zero else d
        for i, d in enumerate(wanted)
    ]
    open_at = [i for i, d in enumerate(result) if d == -1]
    if shape is None or (len(open_at) == 1 and None in result):
        result = [None if d == -1 else d for d in result]
    elif open_at:
        result[open_at[0]] = _filled(call, shape, [d for d in result if d != -1])
    elif None not in result:
        _same_count(call, shape, result)
    call.put(result)


def _filled(call: Call, shape: Sequence[Dim], others: list[Dim]) -> Dim:
    """What -1 stands for in a requested shape."""
    found = quotient(call, shape, others)
    if found is not None:
        return found
    whole = call.sizes.factors(call.sizes.product(shape))
    rest = call.sizes.factors(call.sizes.product(others))
    if whole is None or rest is None or rest[0] == 0:
        return None
    left = [one for one in whole[1] if one not in rest[1]]
    missing = [one for one in rest[1] if one not in whole[1]]
    if not missing:
        return call.sizes.window(call.sizes.product([whole[0], *left]), 0, rest[0], 0)
    return None


def _same_count(call: Call, shape: Sequence[Dim], result: Sequence[Dim]) -> None:
    """A reshape keeps the number of elements."""
    upper, lower = (call.sizes.factors(call.sizes.product(dims)) for dims in (shape, result))
    if upper is None or lower is None:
        return
    left, right = list(upper[1]), list(lower[1])
    for one in list(left):
        if one in right:
            left.remove(one)
            right.remove(one)
    call.equal(call.sizes.product([upper[0], *left]), call.sizes.product([lower[0], *right]))


def _flatten(call: Call) -> None:
    shape = call.shape()
    call.carry(0)
    if shape is not None:
        axis = call.attribute("axis", 1)
        axis = axis + len(shape) if axis < 0 else axis
        call.put([call.sizes.product(shape[:axis]), call.sizes.product(shape[axis:])])


def _expand(call: Call) -> None:
    call.carry(0)
    shape, wanted = call.shape(), call.numbers(1)
    if wanted is None:
        return
    numbers = call.numbers(0)
    if numbers is not None and len(numbers) == 1 and len(wanted) <= 1:
        size = wanted[0] if wanted else 1
        if isinstance(size, int) and size <= SMALL:
            call.put_numbers(numbers * size)
    call.put(broadcast(call, [shape, tuple(wanted)]))


def _tile(call: Call) -> None:
    call.carry(0)
    shape, repeats = call.shape(), call.numbers(1)
    if shape is not None and repeats is not None:
        call.put([call.sizes.product(pair) for pair in zip(shape, repeats, strict=True)])


def _pad(call: Call) -> None:
    shape, pads = call.shape(), call.numbers(1) if len(call.inputs) > 1 else call.attribute("pads")
    if shape is None or pads is None:
        return
    axes = call.ints(3) if call.name(3) else list(range(len(shape)))
    if axes is None:
        return
    result = list(shape)
    for i, axis in enumerate(axes):
        result[axis] = plus(plus(result[axis], pads[i]), pads[i + len(axes)])
    call.put(result)


def _slice(call: Call) -> None:
    call.carry(0)
    shape, starts, ends = call.shape(), *(_bounds(call, i, n) for i, n in ((1, "starts"), (2, "ends")))
    if shape is None:
        return
    axes = call.ints(3, "axes") if call.name(3) or call.attribute("axes") else list(range(len(starts or ())))
    steps = call.ints(4) if call.name(4) else None
    if call.name(4) and steps is None:
        steps = []
    if axes is None:
        return
    result = list(shape)
    for i, axis in enumerate(axes):
        step = 1 if steps is None else steps[i] if i < len(steps) else None
        start, end = (None if bound is None else bound[i] for bound in (starts, ends))
        result[axis] = _cut(call, shape[axis], start, end, step, constant=call.walk.is_constant(call.name(0)))
    call.put(result)
    numbers = call.numbers(0)
    first, last = (bounds[0] if bounds and len(bounds) == 1 else None for bounds in (starts, ends))
    if numbers is not None and isinstance(first, int) and isinstance(last, int):
        call.put_numbers(numbers[slice(first, last, steps[0] if steps else 1)])


def _bounds(call: Call, index: int, attribute: str) -> Sequence[Dim] | None:
    return call.numbers(index) if len(call.inputs) > 1 else call.attribute(attribute)


_FAR = 1 << 30


def _cut(call: Call, size: Dim, start: Dim, end: Dim, step: int | None, *, constant: bool) -> Dim:
    """Returns how much of a dim a slice keeps."""
    if start is None or end is None or step is None:
        return None
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(*slice(start, end, step).indices(size)))
    if step == -1 and isinstance(start, int) and start == -1:
        return size
    if step != 1:
        length = _cut(call, size, start, end, 1, constant=constant)
        return call.sizes.window(length, step - 1, step, 0) if step > 1 else None
    if isinstance(start, int) and start < 0:
        start = plus(size, start) if not isinstance(end, int) or end > _FAR else start
    if isinstance(end, int) and end < 0:
        end = plus(size, end)
    elif isinstance(end, int) and end > _FAR:
        end = size
    elif constant and isinstance(size, int):
        call.sizes.limit(end, size)
    elif isinstance(end, int) and symbols_of(size):
        return None  # whichever is smaller
    if isinstance(start, int) and start < 0:
        return None
    return plus(end, start, -1)


def _range(call: Call) -> None:
    start, limit, delta = (call.numbers(i) for i in range(3))
    if start is None or limit is None or delta is None or not start or not limit or delta != (1,):
        call.put([None])
        return
    call.put([plus(limit[0], start[0], -1)])
    if limit[0] is not None:
        call.walk.tops[call.outputs[0]] = limit[0]


def _constant_of_shape(call: Call) -> None:
    wanted = call.numbers(0)
    if wanted is not None:
        call.put(wanted)
        value = call.attribute("value")
        size = wanted[0] if len(wanted) == 1 else None
        if isinstance(size, int) and size <= SMALL and value is not None:
            filled = call.walk.read(value)
            if filled is not None:
                call.put_numbers(filled * size)


def _cumulated(call: Call) -> None:
    """CumSum: of a mask it makes positions."""
    call.put(call.shape())
    shape = call.shape()
    axis = call.ints(1)
    if shape and call.name(0) in call.walk.flows and axis:
        call.walk.tops[call.outputs[0]] = plus(shape[axis[0]], 1)


def _scaled_numbers(call: Call) -> None:
    numbers = call.numbers(0)
    call.put(call.shape())
    if numbers is not None:
        call.put_numbers([scaled(n, -1) for n in numbers])


RULES: dict[str, Rule] = {
    "Constant": _constant,
    "Shape": _shape,
    "Size": _size,
    "Cast": _cast,
    "Identity": _cast,
    "Neg": _scaled_numbers,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "Slice": _slice,
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cumulated,
}
