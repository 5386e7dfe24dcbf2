"""Which axes of a torch module's inputs a trace leaves open: by default the first one, and whatever was asked for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx.experimental import _config
from torch.utils._pytree import tree_leaves, tree_map_only

from laurel_graph.errors import ModelError

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
    places = [i for i, leaf in enumerate(_leaves(args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    while places:
        # torch marks the tensors whose axes are open and leaves the marks there when it fails: each try has its own
        one_args, one_kwargs = tree_map_only(torch.Tensor, torch.clone, (tuple(args), dict(kwargs)))
        leaves = _leaves(one_args, one_kwargs)
        collection = torch.export.ShapesCollection()
        for place in places:
            collection[leaves[place]] = {0: torch.export.Dim.AUTO}
        try:
            shapes = collection.dynamic_shapes(module, one_args, one_kwargs)
            oblivious = _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
            with torch.no_grad(), oblivious:  # else an axis of size 1 is fixed at 1
                program = torch.export.export(module, one_args, one_kwargs, dynamic_shapes=shapes, strict=False)
        except Exception:  # the module's own code runs here; a trace without open axes tells what is wrong with it
            left = [place for place in places if leaves[place].shape[0] != 1]  # a size of 1 may be there to be repeated
            places = left if len(left) < len(places) else []
            continue
        fixed = _fixed(program)
        left = [place for place in places if id(leaves[place]) not in fixed]
        if len(left) == len(places):
            return program
        places = left  # what the trace has fixed must not be called open: trace again without
    return None


def _leaves(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    return tree_leaves((tuple(args), dict(kwargs)))


def _fixed(program: torch.export.ExportedProgram) -> set[int]:
    """Returns the ids of the example tensors whose first axis has one size in *program*, whatever was asked."""
    names = program.graph_signature.user_inputs
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    examples = tree_leaves(program.example_inputs)
    return {
        id(example)
        for example, value in zip(examples, (values.get(str(name)) for name in names), strict=True)
        if isinstance(value, torch.Tensor) and value.dim() and not _is_symbol(value.shape[0])
    }


def _is_symbol(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


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
