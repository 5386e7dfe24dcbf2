"""Tables as data: words become class numbers, columns become the one array that a model takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from laurel_graph.errors import DataError, near
from laurel_graph.tools.finetuning.data import Data, InputSpec
from laurel_graph.tools.finetuning.options import numbers

MOST_CLASSES = 1000
"""More different words than this are texts, no classes."""
_LISTED = 8


def shaped(
    data: Data, inputs: Sequence[InputSpec], target: str | None, known: Mapping[str, Sequence[str]] | None = None
) -> Data:
    """Returns data with class numbers in the place of the target's words, and the columns of a table as one input.

    Args:
        data: what was read.
        inputs: what the model takes.
        target: name of the target; ``None`` for the only array that is no input.
        known: target to its classes in the order of their numbers, where other data gave them.

    Raises:
        DataError: the target cannot be told, or is no column; words that are no classes of *known*, or too many; the
            columns are not as many as the model takes.
    """
    is_table = data.is_table and len(inputs) == 1
    if is_table and inputs[0].name in data.names:  # a column is one number for each sample
        is_table = len(inputs[0].shape or ()) != 1
    chosen = _target(data, [spec.name for spec in inputs], target, is_table)
    if chosen is not None and chosen in data.words:
        data = _numbered(data, chosen, (known or {}).get(chosen))
    return _stacked(data, inputs[0], chosen) if is_table and chosen is not None else data


def _target(data: Data, inputs: Collection[str], target: str | None, is_table: bool) -> str | None:
    columns = [*data.names, *data.words]
    if target is None and is_table:
        if len(data.words) != 1:
            raise DataError(
                f"{data.source}: name the column to predict with --target; the columns are {_list(columns)}."
            )
        return next(iter(data.words))
    if target is None:
        others = [name for name in columns if name not in inputs]
        return others[0] if len(others) == 1 else None
    if is_table and target not in columns:
        raise DataError(f"{data.source}: no column {target!r}; it has {_list(columns)}.{near(target, columns)}")
    return target


def _numbered(data: Data, target: str, known: Sequence[str] | None) -> Data:
    words = data.words[target]
    classes = tuple(map(str, np.unique(words))) if known is None else tuple(known)
    if len(classes) > MOST_CLASSES:
        raise DataError(f"{data.source}: {target!r} holds {len(classes)} different texts: expected classes or numbers.")
    numbers = {name: number for number, name in enumerate(classes)}
    if strange := [str(word) for word in words if str(word) not in numbers]:
        raise DataError(
            f"{data.source}: {target!r} has {strange[0]!r}, which is no class of the training data, {_list(classes)}."
        )
    with_numbers = data.with_array(target, np.asarray([numbers[str(word)] for word in words], np.int64))
    with_numbers.classes[target] = classes
    return with_numbers


def _stacked(data: Data, spec: InputSpec, target: str) -> Data:
    """Returns the columns other than the target as the model's one input ``(N, D)``, in the file's order."""
    if spec.shape is None or len(spec.shape) != 2:
        shape = "an unknown shape" if spec.shape is None else f"shape {spec.shape}"
        raise DataError(
            f"{data.source}: the columns of a table make an input of shape (N, D); {spec.name!r} has {shape}: give "
            "arrays (.npz) instead."
        )
    columns = [name for name in data.names if name != target]
    if words := [name for name in data.words if name != target]:
        raise DataError(
            f"{data.source}: the column {words[0]!r} holds words, and the model takes numbers: leave it out, or number "
            "its words."
        )
    width = spec.shape[1]
    if isinstance(width, int) and width != len(columns):
        raise DataError(
            f"{data.source}: {spec.name!r} takes {width} columns, found {len(columns)} beside the target {target!r}: "
            f"{_list(columns)}."
        )
    values = data.batch(np.arange(len(data)))
    made = Data({spec.name: np.stack([values[name] for name in columns], 1), target: values[target]}, data.source)
    made.classes.update(data.classes)
    made.notes.append(f"{data.source}: {spec.name!r} is made of {_list(columns)}, in this order.")
    return made


def scale_bytes(data: Data, inputs: Sequence[InputSpec], scale: float, mean: str | None, std: str | None) -> None:
    """Lets *data* hand out the bytes that a model takes as numbers as ``(x / scale - mean) / std``.

    Raises:
        DataError: no input holds bytes, or the means are not one or one for each channel.
    """
    found = False
    for spec in inputs:
        sample = data.require(spec.name, "model input")
        if sample.dtype != np.uint8 or spec.dtype.kind != "f":
            continue
        found = True
        minus = _along(data, spec, sample.shape, "mean", numbers("mean", mean) or (0.0,))
        over = _along(data, spec, sample.shape, "std", numbers("std", std) or (1.0,))
        data.scale(spec.name, 1 / (scale * over), -minus / over)
    if not found:
        raise DataError(
            f"{data.source}: --scale is for inputs of bytes (uint8), and none of "
            f"{', '.join(spec.name for spec in inputs)} is one: scale what is no bytes in the data."
        )


def _along(
    data: Data, spec: InputSpec, shape: tuple[int, ...], name: str, values: tuple[float, ...]
) -> NDArray[np.float64]:
    """Returns numbers so that they broadcast along the channels of ``(N, C, H, W)`` or ``(..., C)``."""
    if len(values) == 1:
        return np.asarray(values[0])
    axis = 1 if len(shape) == 4 and shape[1] == len(values) else len(shape) - 1
    if shape[axis] != len(values):
        raise DataError(
            f"{data.source}: --{name} has {len(values)} numbers, but {spec.name!r} has shape (N, "
            f"{', '.join(map(str, shape[1:]))}): expected one, or one for each channel."
        )
    return np.asarray(values).reshape([-1 if i == axis else 1 for i in range(len(shape))])


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{more}"
