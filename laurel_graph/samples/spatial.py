"""Operators that slide over axes of space: what they demand of sizes, and what they make of them."""

from __future__ import annotations

from collections.abc import Sequence

from .graph import Call, Rule, Shape, table_of
from .sizes import Dim, plus


def _conv(x: int = 0, w: int = 1) -> Rule:
    def rule(call: Call) -> None:
        data, weight = call.shape(x), call.shape(w)
        if data is None or weight is None or len(data) != len(weight):
            return
        group = call.attribute("group", 1)
        if isinstance(weight[1], int):
            call.equal(data[1], weight[1] * group)
        kernel = [d if isinstance(d, int) else 1 for d in weight[2:]]
        call.put((data[0], weight[0], *_slid(call, data[2:], kernel)))

    return rule


def _slid(call: Call, spatial: Shape, kernel: Sequence[int]) -> list[Dim]:
    n = len(spatial)
    strides = call.attribute("strides") or [1] * n
    dilations = call.attribute("dilations") or [1] * n
    pads = call.attribute("pads") or [0] * 2 * n
    auto = call.attribute("auto_pad") or "NOTSET"
    found: list[Dim] = []
    for i, dim in enumerate(spatial):
        reach = dilations[i] * (kernel[i] - 1) + 1
        if auto.startswith("SAME"):
            found.append(call.sizes.window(dim, strides[i] - 1, strides[i], 0))
            continue
        margin = (0 if auto == "VALID" else pads[i] + pads[i + n]) - reach
        if call.attribute("ceil_mode", 0):
            margin += strides[i] - 1
        found.append(call.sizes.window(dim, margin, strides[i]))
    return found


def _pool(call: Call) -> None:
    shape, kernel = call.shape(), call.attribute("kernel_shape")
    if shape is not None and kernel:
        call.put((*shape[:2], *_slid(call, shape[2:], kernel)))


def _conv_transpose(call: Call) -> None:
    data, weight = call.shape(0), call.shape(1)
    if data is None or weight is None or len(data) != len(weight):
        return
    n = len(data) - 2
    call.equal(data[1], weight[0])
    channels = weight[1] * call.attribute("group", 1) if isinstance(weight[1], int) else None
    strides = call.attribute("strides") or [1] * n
    dilations = call.attribute("dilations") or [1] * n
    pads = call.attribute("pads") or [0] * 2 * n
    extra = call.attribute("output_padding") or [0] * n
    if call.attribute("auto_pad") not in (None, "NOTSET", "VALID") or call.attribute("output_shape"):
        call.put((data[0], channels, *[None] * n))
        return
    spatial: list[Dim] = []
    for i, (dim, kernel) in enumerate(zip(data[2:], weight[2:], strict=True)):
        reach = dilations[i] * (kernel - 1) + 1 if isinstance(kernel, int) else 1
        steps = call.sizes.product((plus(dim, -1), strides[i]))
        spatial.append(plus(steps, reach + extra[i] - pads[i] - pads[i + n]))
    call.put((data[0], channels, *spatial))


def _global_pool(call: Call) -> None:
    shape = call.shape()
    if shape is not None:
        call.put((*shape[:2], *[1] * (len(shape) - 2)))


def _resize(call: Call) -> None:
    shape, last = call.shape(), len(call.inputs) - 1
    scales = call.ints(1 if call.node.op_type == "Upsample" else 2, "scales")
    if shape is None:
        return
    if last == 3 and call.name(3):
        sizes = call.numbers(3)
        call.put(sizes if sizes is not None else [None] * len(shape))
    elif scales is not None and len(scales) == len(shape):
        call.put([call.sizes.product((d, s)) for d, s in zip(shape, scales, strict=True)])


RULES: dict[str, Rule] = {
    **table_of(_conv(), "Conv FusedConv ConvInteger"),
    **table_of(_pool, "MaxPool AveragePool LpPool"),
    **table_of(_global_pool, "GlobalAveragePool GlobalMaxPool GlobalLpPool"),
    **table_of(_resize, "Resize Upsample"),
    "QLinearConv": _conv(0, 3),
    "ConvTranspose": _conv_transpose,
}
