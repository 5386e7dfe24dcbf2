"""On which axis the channels of each value lie, for scales that differ by channel."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from laurel_graph.graph_view import Shape
from laurel_graph.onnx_model.editor import GraphEditor
from laurel_graph.onnx_model.hidden_adds import MICROSOFT
from laurel_graph.onnx_model.walk import attribute_of


def carried_axis(node: onnx.NodeProto, name: str, axis: int, editor: GraphEditor) -> int | None:
    """Returns where channel *axis* of its input *name* lies in the output of a homogeneous operator."""
    op, shape = node.op_type, editor.shape(name)
    if name != node.input[0] and op not in _CHANNELWISE:
        return None
    if op == "Transpose":
        perm = attribute_of(node, "perm")
        return list(perm).index(axis) if perm else None
    if op in ("Reshape", "Flatten", "Squeeze"):
        pooled = shape is not None and axis == 1 and len(shape) > 2 and all(d == 1 for d in shape[2:])
        return 1 if pooled and editor.rank(node.output[0]) == 2 else None  # :func:`channel_axes` checks its size
    if op.startswith("Reduce"):
        axes = attribute_of(node, "axes")
        if len(node.input) > 1 and node.input[1]:
            axes = editor.constant(node.input[1])
        if axes is None or shape is None:
            return None
        reduced = {int(a) % len(shape) for a in axes}
        before = 0 if attribute_of(node, "keepdims", 1) else sum(a < axis for a in reduced)
        return None if axis in reduced else axis - before
    if op not in _CHANNELWISE:
        return None
    ranks = [editor.rank(node.output[0]), editor.rank(name)]
    return axis + ranks[0] - ranks[1] if ranks[0] is not None and ranks[1] is not None else None


_CHANNELWISE_NAMES = (
    "Relu LeakyRelu PRelu MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool Identity Dropout Neg Abs "
    "Add Sub Sum Mean Max Min Cast Resize Upsample Mul Div BatchNormalization Where"
)
_CHANNELWISE = frozenset(_CHANNELWISE_NAMES.split())


def _has_channels(shape: Shape, place: tuple[int, int], trusted: bool) -> bool:
    """Whether a value of that shape has the channels at that place; a *trusted* one may be of unknown size there."""
    axis, width = place
    if not 0 <= axis < len(shape):
        return False
    return shape[axis] == width or (trusted and not isinstance(shape[axis], int))


def _hands_values_on(node: onnx.NodeProto, axis: int) -> bool:
    """Whether channel *axis* of the values of an attention is that of its output."""
    return node.op_type == "MultiHeadAttention" and node.domain == MICROSOFT and len(node.input) > 2 and axis == 2


def channel_axes(editor: GraphEditor, seeds: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Returns the axis of the channels for every value that hangs together with *seeds* through channel-wise operators.

    A value on which two ways disagree is left out, and so is one that is not known to have all channels there.

    Args:
        editor: the graph.
        seeds: value to the axis of its channels and their number.
    """
    axes: dict[str, tuple[int, int]] = {}
    wrong: set[str] = set()
    wanted = list(seeds.items())
    while wanted:
        name, place = wanted.pop()
        axis, width = place
        shape = editor.shape(name)
        if name in axes or name in wrong or shape is None or not _has_channels(shape, place, name in seeds):
            if axes.get(name, place) != place:
                wrong.add(name)
            continue
        axes[name] = place
        for node in editor.consumers(name):
            if _hands_values_on(node, axis) and node.input[2] == name:
                wanted.append((node.output[0], place))
            elif node.domain == "" and (carried := carried_axis(node, name, axis, editor)) is not None:
                wanted.append((node.output[0], (carried, width)))
        maker = editor.producer.get(name)
        if maker is not None and _hands_values_on(maker, axis):
            wanted.append((maker.input[2], place))
        if maker is None or maker.domain:
            continue
        if maker.op_type in _CHANNELWISE:
            wanted += [(i, place) for i in maker.input if i and editor.rank(i) == len(shape)]
        elif maker.op_type == "Transpose" and (perm := attribute_of(maker, "perm")):
            wanted.append((maker.input[0], (perm[axis], width)))
    return {name: axis for name, (axis, _) in axes.items() if name not in wrong}
