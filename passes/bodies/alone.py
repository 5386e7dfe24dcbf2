"""The bodies of If, Loop and Scan run by themselves, on what the graph around them computes.

A body of an If whose condition is not met, or of a loop that makes no step, is never run with the model; by itself it
is. What it takes from around it is there in either case.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto, helper

from laurel_graph.onnx_model.bodies import CONTROL, Body, as_model, inside, taken_in
from laurel_graph.onnx_model.walk import attribute_of

Array = NDArray[Any]


def bodies_in(model: ModelProto) -> dict[str, Body]:
    """Returns path to body of the If, Loop and Scan nodes of the main graph."""
    return {body.path: body for body in inside(model.graph) if body.node.op_type in CONTROL and not body.node.domain}


def needed(model: ModelProto, body: Body) -> list[str]:
    """Returns the values around a body that :func:`first_step` is made of."""
    carried = [] if body.node.op_type == "If" else [name for name in body.node.input if name]
    return list(dict.fromkeys((*carried, *taken_in(model, body)[0])))


def first_step(model: ModelProto, body: Body, given: Mapping[str, Array]) -> dict[str, Array] | None:
    """Returns what a body reads when it runs first; ``None`` where that cannot be told.

    Args:
        model: the model that holds it.
        body: the body.
        given: the values of :func:`needed`, as far as they are arrays.
    """
    captured = taken_in(model, body)[0]
    feeds = {name: given[name] for name in captured if name in given}
    read = [given.get(name) for name in body.node.input]
    formals = list(body.graph.input)
    if body.node.op_type == "Loop":
        steps: list[Array | None] = [np.asarray(0, np.int64), np.asarray(True), *read[2:]]
    elif body.node.op_type == "Scan":
        steps = _first_slices(body, read)
    else:
        steps = []
    if len(feeds) < len(captured) or len(steps) != len(formals):
        return None
    for formal, array in zip(formals, steps, strict=True):
        if array is None:
            return None
        stated = formal.type.tensor_type.shape.dim
        feeds[formal.name] = array.reshape(1) if array.ndim == 0 and len(stated) == 1 else array
    return feeds


def _first_slices(body: Body, read: list[Array | None]) -> list[Array | None]:
    count = int(attribute_of(body.node, "num_scan_inputs", 0))
    axes = attribute_of(body.node, "scan_input_axes", [0] * count)
    backward = attribute_of(body.node, "scan_input_directions", [0] * count)
    found: list[Array | None] = list(read[: len(read) - count])
    for array, axis, last in zip(read[len(read) - count :], axes, backward, strict=True):
        whole = array is not None and -array.ndim <= axis < array.ndim and array.shape[axis]
        found.append(np.take(array, -1 if last else 0, axis) if array is not None and whole else None)
    return found


def next_step(body: Body, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> dict[str, Array] | None:
    """Returns what the body of a Loop reads in the step after that of *results*; ``None`` for other bodies."""
    if body.node.op_type != "Loop":
        return None
    count, _, *carried = (value.name for value in body.graph.input)
    made = [value.name for value in body.graph.output][1 : len(carried) + 1]
    if not all(name in results for name in made):
        return None
    state = {name: results[other] for name, other in zip(carried, made, strict=True)}
    return {**feeds, count: feeds[count] + 1, **state}


def alone(model: ModelProto, body: Body, feeds: Mapping[str, Array]) -> ModelProto:
    """Returns a body as a model of its own that reads what *feeds* holds."""
    return as_model(model, body, {name: _info(name, array) for name, array in feeds.items()})


def _info(name: str, array: Array) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)
