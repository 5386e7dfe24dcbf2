"""Which axes of a torch module's inputs a trace leaves open: by default the first one, and whatever was asked for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx.experimental import _config
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from laurel_graph.errors import ModelError

from .guards import Place, Trace, admit_one, open_places, pins, refuse_one_as

if TYPE_CHECKING:
    import onnx

_FREE = (None, torch.export.Dim.AUTO, torch.export.Dim.STATIC)
"""What an axis may be given as that does not demand that it is open."""


def open_program(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> torch.export.ExportedProgram | None:
    """Exports *module* with the first axis of every example tensor open where it works for any size of it.

    Returns:
        The program, in which at least one axis is open; ``None`` where none can be: the module needs the sizes of the
        example inputs, or cannot be exported at all.
    """
    places = {(i, 0) for i, leaf in enumerate(_leaves(args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.dim()}
    ones = {place for place in places if _leaves(args, kwargs)[place[0]].shape[0] == 1}
    while places:
        try:
            program, traced = _traced(module, args, kwargs, places, ones & places)
        except Exception:  # the module's own code runs here; a trace without open axes tells what is wrong with it
            places = places - ones if ones & places else set()  # a size of 1 may be there to be repeated
            continue
        left = places & open_places(program).keys()
        if len(left) < len(places):
            places = left  # what the trace has fixed must not be called open: trace again without
        elif pins(program):
            places = places - ones if ones & places else set()
        else:
            admit_one(program, module, *traced, _tracer(module, left))
            return program
    return None


def program_as_asked(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], asked: Any
) -> torch.export.ExportedProgram:
    """Exports *module* with the axes open that *asked* (as for ``torch.export.export``) names; raises what torch does.

    A size of one among those that must not be fixed stays open, and is let in where the module takes it.
    """
    if isinstance(asked, torch.export.ShapesCollection):
        asked = asked.dynamic_shapes(module, tuple(args), dict(kwargs))
    args, kwargs, asked = tuple(args), dict(kwargs), asked or None
    with torch.no_grad():
        try:
            program = torch.export.export(module, args, kwargs, dynamic_shapes=asked, strict=False)
        except Exception:
            tensors = [i for i, leaf in enumerate(_leaves(args, kwargs)) if isinstance(leaf, torch.Tensor)]
            wanted = zip(tensors, _wanted(module, args, kwargs, asked), strict=True)
            ones = {(i, a) for i, (_, axes) in wanted for a in axes if _leaves(args, kwargs)[i].shape[a] == 1}
            if not ones:
                raise
            args, kwargs = _doubled(args, kwargs, ones)  # torch or the code fixes a size of 1; others may be open
            program = torch.export.export(module, args, kwargs, dynamic_shapes=asked, strict=False)
    if places := set(open_places(program)):
        with suppress(Exception):  # torch takes it that 1 is no other than the rest: see what the code says
            probe = _trace(module, args, kwargs, places)
            admit_one(probe, module, args, kwargs, _tracer(module, places))
            refuse_one_as(program, probe)
    return program


def check_program(program: torch.export.ExportedProgram, asked: Any) -> None:
    """Makes sure that a program, exported before, leaves those axes open that *asked* demands.

    Raises:
        ModelError: naming the first axis that is fixed.
    """
    args, kwargs = program.example_inputs or ((), {})
    leaves, places = _leaves(args, kwargs), open_places(program)
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    wanted = _wanted(program.module(), args, kwargs, asked)
    for i, (_, axes) in zip(tensors, wanted, strict=False):
        for axis in axes:
            if (i, axis) not in places:
                raise ModelError(
                    f"dynamic_shapes asks for axis {axis} of input {program.graph_signature.user_inputs[i]!r} to be "
                    f"open, but the program was exported with it fixed at {leaves[i].shape[axis]}. Give "
                    "dynamic_shapes= to torch.export.export, or the nn.Module here."
                )


def _traced(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], places: set[Place], ones: set[Place]
) -> tuple[torch.export.ExportedProgram, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Traces *module* at its example inputs, or where that fixes a size of 1, with such inputs twice; returns them."""
    try:
        program = _trace(module, args, kwargs, places)
        if not ones or not (pins(program) or places - open_places(program).keys()):
            return program, (tuple(args), dict(kwargs))
    except Exception:  # as above: batch norm in training takes no batch of one
        if not ones:
            raise
    args, kwargs = _doubled(args, kwargs, ones)
    return _trace(module, args, kwargs, places), (args, kwargs)


def _doubled(
    args: Sequence[Any], kwargs: Mapping[str, Any], places: set[Place]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the inputs with everything twice along those axes."""
    leaves, spec = tree_flatten((tuple(args), dict(kwargs)))
    for i, axis in places:
        leaves[i] = torch.cat([leaves[i], leaves[i]], axis)
    doubled: tuple[tuple[Any, ...], dict[str, Any]] = tree_unflatten(leaves, spec)
    return doubled


def _tracer(module: nn.Module, places: set[Place]) -> Trace:
    return lambda args, kwargs: _trace(module, args, kwargs, places)


def _trace(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], places: set[Place]
) -> torch.export.ExportedProgram:
    """Exports with those axes open, unless the module fixes them."""
    # torch marks the tensors whose axes are open and leaves the marks there when it fails: each try has its own
    one_args, one_kwargs = tree_map_only(torch.Tensor, torch.clone, (tuple(args), dict(kwargs)))
    leaves = _leaves(one_args, one_kwargs)
    collection = torch.export.ShapesCollection()
    for i in sorted({i for i, _ in places}):
        collection[leaves[i]] = {axis: torch.export.Dim.AUTO for j, axis in places if j == i}
    shapes = collection.dynamic_shapes(module, one_args, one_kwargs)
    oblivious = _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), oblivious:  # else an axis of size 1 is fixed at 1
        return torch.export.export(module, one_args, one_kwargs, dynamic_shapes=shapes, strict=False)


def _leaves(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    return tree_leaves((tuple(args), dict(kwargs)))


def check_open(
    graph: onnx.GraphProto, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], asked: Any
) -> None:
    """Makes sure that an exported graph leaves those axes open that *asked* demands.

    Args:
        graph: what torch wrote.
        module: what it was made from.
        args: the example inputs.
        kwargs: example inputs by name.
        asked: as for ``torch.export.export``.

    Raises:
        ModelError: naming the first axis that is fixed all the same.
    """
    held = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in held}
    wanted = list(_wanted(module, args, kwargs, asked))
    named = {path for path, _ in wanted if path in inputs}
    rest = iter([name for name in inputs if name not in named])
    for path, axes in wanted:
        name = path if path in named else next(rest, "")
        dims = inputs[name].type.tensor_type.shape.dim if name else ()
        for axis in axes:
            if axis < len(dims) and not dims[axis].dim_param:
                raise ModelError(
                    f"dynamic_shapes asks for axis {axis} of input {name!r} to be open, but the module has it fixed at "
                    f"{dims[axis].dim_value}. Where lg.transform or torch.export captured it for its example "
                    "inputs, give dynamic_shapes= there, too; where its code needs that size, leave the axis out."
                )


def _wanted(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], asked: Any
) -> Iterator[tuple[str, list[int]]]:
    """Returns, for every example tensor, the name of the argument that is it ("" inside one) and its open axes."""
    given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    if isinstance(asked, torch.export.ShapesCollection):
        asked = asked.dynamic_shapes(module, tuple(args), dict(kwargs))
    specs = dict(asked) if isinstance(asked, Mapping) else dict(zip(given, asked or (), strict=False))
    for name, value in given.items():
        spec = specs.get(name)
        if isinstance(value, dict) and name not in specs:  # **kwargs are named one by one
            spec = specs
        for tensor, axes in _pairs(value, spec):
            yield (name if tensor is value else "", axes)


def _pairs(value: Any, spec: Any) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Returns the tensors of *value* and which of their axes *spec*, of the same structure, wants open."""
    if isinstance(value, torch.Tensor):
        axes = spec.items() if isinstance(spec, Mapping) else enumerate(spec or ())
        yield value, [axis % value.dim() for axis, dim in axes if dim not in _FREE and type(dim) is not int]
    elif isinstance(value, (list, tuple)):
        inner = spec if isinstance(spec, (list, tuple)) else [None] * len(value)
        for part, of_part in zip(value, inner, strict=False):
            yield from _pairs(part, of_part)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _pairs(part, spec.get(key) if isinstance(spec, Mapping) else None)
    else:
        yield from ((leaf, []) for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))
