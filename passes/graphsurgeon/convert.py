"""A ``gs.Graph`` of a model, and a model of a ``gs.Graph`` in which all that nobody changed is as it was, to the byte.

graphsurgeon drops on export what its classes do not hold: metadata of models, graphs, nodes and values, doc strings of
nodes and values, inputs that have a default, quantisation annotations, unused weights, attributes of rarer types.
Rather than listing what that is, :func:`to_model` compares: a part of the export that equals what graphsurgeon exports
for the untouched original *is* untouched, and the original's own bytes stand there again. Parts that were changed keep
what graphsurgeon made of them, plus the doc string and the metadata of the original part of the same name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from laurel_graph.errors import ModelError
from laurel_graph.onnx_model.order import in_order
from laurel_graph.onnx_model.tensors import array_of
from laurel_graph.onnx_model.walk import subgraphs
from laurel_graph.opset.recover import recover

from . import ORIGIN, origin_folder

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

Proto = TypeVar("Proto", bound=Any)

_HELD_BY_GRAPH = {"graph", "functions", "opset_import", "ir_version", "producer_name", "producer_version"}
"""Fields of a model that graphsurgeon holds itself."""


def to_graph(model: ModelProto, base: str | Path = "") -> gs.Graph:
    """Returns the ``gs.Graph`` of a copy of *model*.

    Args:
        model: any sound model; weights in other files stay there and are read when their values are asked for.
        base: the folder of those files.

    Raises:
        ModelError: graphsurgeon cannot hold the model.
    """
    from .register import register

    register()
    base = _absolute(base)
    graph = _imported(model, base)
    setattr(graph, ORIGIN, (model, base))
    return graph


def to_model(graph: gs.Graph, origin: ModelProto | None = None, base: str | Path = "") -> ModelProto:
    """Returns the model of a ``gs.Graph``.

    Args:
        graph: the graph; it stays as it is.
        origin: the model that it was made from; by default the one that :func:`to_graph` was given, if *graph* is its
            result and not a copy of it.
        base: the folder of the weights that *origin* keeps in other files.

    Raises:
        ModelError: graphsurgeon cannot write the graph, or the graph is not sound.
    """
    from laurel_graph import soundness

    if origin is None:
        origin, base = vars(graph).get(ORIGIN, (None, base or origin_folder(graph)))
    base = _absolute(base)
    _check_constants(graph, base)
    made = _exported(graph)
    nodes = list(in_order(made.graph.node, "the graph"))
    if nodes != list(made.graph.node):
        ordered = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del made.graph.node[:]
        made.graph.node.extend(ordered)
    if origin is not None:
        _carry_over(made, origin, base)
    found = recover(made)  # of residuals that graph.laurel put in, or of a graph that was not made by to_graph
    if origin is None:
        for line in found.lost:
            warnings.warn(line, stacklevel=2)
    soundness.check(made)
    return made


def _absolute(base: str | Path) -> str | Path:
    """A folder that stays the same where a program changes its own; "" for none."""
    return Path(base).absolute() if base else ""


def _imported(model: ModelProto, base: str | Path = "") -> gs.Graph:
    import onnx_graphsurgeon as gs

    copy = ModelProto()
    copy.CopyFrom(model)  # graphsurgeon renames tensors in place
    try:
        with gs.logger.G_LOGGER.suppress():  # it prints to stdout, where results go
            graph = gs.import_onnx(copy)
    except Exception as error:  # whatever it cannot hold shows as an error of its own, or of a library below
        raise ModelError(f"onnx-graphsurgeon cannot hold this model ({type(error).__name__}: {error}).") from error
    for tensor in _constants(graph):
        if (stored := _in_file(tensor)) is not None:
            tensor._values.load = partial(array_of, stored, base)  # graphsurgeon itself looks in the current folder
    return graph


def folders_of(graph: gs.Graph) -> dict[str | Path, None]:
    """Returns the folders of the weights that a graph, or a copy of it, keeps in files, as far as they are known."""
    known = (_folder_of(tensor) for tensor in _constants(graph) if _in_file(tensor) is not None)
    return {folder: None for folder in known if folder}


def _constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """Yields the constants of a graph and of its bodies; one that several nodes read comes once for each."""
    import onnx_graphsurgeon as gs

    for node in graph.nodes:
        yield from (tensor for tensor in node.inputs if isinstance(tensor, gs.Constant))
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                yield from _constants(value)
    yield from (tensor for tensor in graph.outputs if isinstance(tensor, gs.Constant))


def _in_file(tensor: gs.Constant) -> TensorProto | None:
    """Returns the reference of a constant whose values lie in a file and were not read."""
    stored = getattr(getattr(tensor, "_values", None), "tensor", None)
    is_reference = isinstance(stored, TensorProto) and stored.data_location == TensorProto.EXTERNAL
    return stored if is_reference else None


def _folder_of(tensor: gs.Constant) -> str | Path:
    """Returns the folder that the reference of a constant leads to, "" for one of graphsurgeon's own import."""
    load = tensor._values.load
    return load.args[1] if isinstance(load, partial) and load.func is array_of else ""


def _check_constants(graph: gs.Graph, base: str | Path) -> None:
    """Makes sure that a file can say what the constants of a graph are.

    Raises:
        ModelError: two of one name hold different values, or the values lie in files of different folders.
    """
    seen: dict[str, gs.Constant] = {}
    for tensor in _constants(graph):
        other = seen.setdefault(tensor.name, tensor)
        if other is not tensor and not _same_values(other, tensor):
            raise ModelError(
                f"two different constants of the graph are called {tensor.name!r}, and a file keeps one of them: give "
                "one of them another name."
            )
        if _in_file(tensor) is not None and (folder := _folder_of(tensor)) != base:
            raise ModelError(
                f"the values of the constant {tensor.name!r} lie in a file of the folder {str(folder) or '(unknown)'}, "
                f"those of the graph in {str(base) or '(unknown)'}: read them first (tensor.values = tensor.values)."
            )


def _same_values(one: gs.Constant, other: gs.Constant) -> bool:
    if one._values is other._values or (_in_file(one) is not None and _in_file(one) == _in_file(other)):
        return True
    a, b = np.asarray(one.values), np.asarray(other.values)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _exported(graph: gs.Graph) -> ModelProto:
    import onnx_graphsurgeon as gs

    try:
        with gs.logger.G_LOGGER.suppress():
            made: ModelProto = gs.export_onnx(graph, do_type_check=False)
    except Exception as error:
        raise ModelError(f"onnx-graphsurgeon cannot write this graph ({type(error).__name__}: {error}).") from error
    for tensor in made.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL and not tensor.external_data:  # its values were read
            tensor.ClearField("data_location")
    return made


def _carry_over(made: ModelProto, origin: ModelProto, base: str | Path) -> None:
    untouched = _exported(_imported(_without_weights(origin)))
    for descriptor, value in origin.ListFields():
        if descriptor.name not in _HELD_BY_GRAPH:
            made.ClearField(descriptor.name)
            if descriptor.is_repeated:
                getattr(made, descriptor.name).MergeFrom(value)
            else:
                setattr(made, descriptor.name, value)
    for name in ("ir_version", "producer_name", "producer_version"):
        if not origin.HasField(name) and getattr(made, name) == getattr(untouched, name):
            made.ClearField(name)
    _restore_list(made.functions, untouched.functions, origin.functions, _function_key)
    _restore_graph(made.graph, untouched.graph, origin.graph, base)


def _without_weights(model: ModelProto) -> ModelProto:
    """Returns a copy in which initializers of the main graph hold no bytes; graphsurgeon does not look at them."""
    light = ModelProto()
    for descriptor, value in model.ListFields():
        if descriptor.name == "graph":
            continue
        target = getattr(light, descriptor.name)
        if descriptor.is_repeated:
            target.MergeFrom(value)
        elif descriptor.message_type is not None:
            target.CopyFrom(value)
        else:
            setattr(light, descriptor.name, value)
    for descriptor, value in model.graph.ListFields():
        if descriptor.name == "initializer":
            light.graph.initializer.extend(
                TensorProto(name=t.name, data_type=t.data_type, dims=t.dims) for t in model.graph.initializer
            )
        elif descriptor.is_repeated:
            getattr(light.graph, descriptor.name).MergeFrom(value)
        else:
            setattr(light.graph, descriptor.name, value)
    return light


def _restore_graph(made: GraphProto, untouched: GraphProto, origin: GraphProto, base: str | Path) -> dict[str, Any]:
    """Puts the original's parts back into an exported graph wherever the export is what it is for the original.

    Returns:
        The weights that graphsurgeon wrote into this graph although they belong to one around it.
    """
    moved = _restore_inner_graphs(made, untouched, origin, base)
    _restore_list(made.node, untouched.node, origin.node, _node_key)
    for name in ("name", "doc_string"):
        if not origin.HasField(name) and getattr(made, name) == getattr(untouched, name):
            made.ClearField(name)
    made.metadata_props.extend(origin.metadata_props)
    made.quantization_annotation.extend(origin.quantization_annotation)
    moved = _restore_weights(made, untouched, origin, base, moved)
    held = {tensor.name for tensor in made.initializer} | {sparse.values.name for sparse in made.sparse_initializer}
    _restore_inputs(made, untouched, origin, held)
    _restore_list(made.output, untouched.output, origin.output, _name)
    _restore_infos(made, untouched, origin, held)
    return moved


def _restore_inner_graphs(
    made: GraphProto, untouched: GraphProto, origin: GraphProto, base: str | Path
) -> dict[str, Any]:
    then, first = _by_key(untouched.node, _node_key), _by_key(origin.node, _node_key)
    moved: dict[str, Any] = {}
    for node in made.node:
        inner, key = subgraphs(node), _node_key(node)
        if not inner or key not in then or key not in first:
            continue
        others = subgraphs(then[key]), subgraphs(first[key])
        if len(others[0]) == len(others[1]) == len(inner):
            for mine, its, old in zip(inner, *others, strict=True):
                moved.update(_restore_graph(mine, its, old, base))
                its.CopyFrom(old)
    return moved


def _restore_list(made: Any, untouched: Any, origin: Any, key: Callable[[Any], Any]) -> None:
    """Restores the items of a repeated field that equal their untouched exports; others keep notes of the original."""
    then, first = _by_key(untouched, key), _by_key(origin, key)
    for item in made:
        old = first.get(key(item))
        if old is None:
            continue
        if item == then.get(key(item)):
            item.CopyFrom(old)
        else:
            _keep_notes(item, old)


def _keep_notes(item: Any, old: Any) -> None:
    """Gives a changed item the doc string and the metadata of the original, and a node its rarer attributes."""
    if old.HasField("doc_string") and not item.doc_string:
        item.doc_string = old.doc_string
    if not item.metadata_props:
        item.metadata_props.extend(old.metadata_props)
    if isinstance(item, NodeProto) and item.op_type == old.op_type:
        there = {attribute.name for attribute in item.attribute}
        item.attribute.extend(a for a in old.attribute if a.type in _UNHELD and a.name not in there)


_UNHELD = {
    AttributeProto.SPARSE_TENSOR,
    AttributeProto.TYPE_PROTO,
    AttributeProto.TENSORS,
    AttributeProto.GRAPHS,
    AttributeProto.SPARSE_TENSORS,
    AttributeProto.TYPE_PROTOS,
}
"""Attribute types that graphsurgeon skips."""


def _restore_weights(
    made: GraphProto, untouched: GraphProto, origin: GraphProto, base: str | Path, moved: dict[str, Any]
) -> dict[str, Any]:
    """Original weights first and in their order; those that nothing read stay, those that lost their readers go.

    Args:
        made: the exported graph.
        untouched: what graphsurgeon exports for the original.
        origin: the original.
        base: the folder of weights in other files.
        moved: weights that bodies in this graph were given, by name.

    Returns:
        The weights that belong to a graph around this one.
    """
    outside: dict[str, Any] = {}
    for field, name in (("initializer", _name), ("sparse_initializer", _sparse_name)):
        now, then = _by_key(getattr(made, field), name), _by_key(getattr(untouched, field), name)
        kept = []
        for old in getattr(origin, field):
            new = now.pop(name(old), None)
            new = moved.pop(name(old), None) if new is None else new
            if new is not None:
                kept.append(old if _same_weight(new, old, base) else new)
            elif name(old) not in then:  # graphsurgeon never exports it here: nothing reads it
                kept.append(old)
        kept += [item for key, item in now.items() if key not in then]
        outside.update((key, item) for key, item in now.items() if key in then)
        copies = [type(item).FromString(item.SerializeToString()) for item in kept]
        del getattr(made, field)[:]
        getattr(made, field).extend(copies)
    return {**moved, **outside}


def _same_weight(new: Any, old: Any, base: str | Path) -> bool:
    """Whether an exported weight is the original one, written anew or not."""
    if new == old:
        return True
    if not isinstance(new, TensorProto) or new.data_type != old.data_type or list(new.dims) != list(old.dims):
        return False
    if new.data_location == TensorProto.EXTERNAL:
        return False
    return array_of(new).tobytes() == array_of(old, base).tobytes()


def _restore_inputs(made: GraphProto, untouched: GraphProto, origin: GraphProto, held: set[str]) -> None:
    """Inputs with a default, which graphsurgeon takes for constants, are inputs again, at their places."""
    _restore_list(made.input, untouched.input, origin.input, _name)
    now = _by_key(made.input, _name)
    ordered = []
    for value in origin.input:
        if value.name in now:
            ordered.append(now.pop(value.name))
        elif value.name in held and not any(value.name == other.name for other in untouched.input):
            ordered.append(value)
    copies = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in (*ordered, *now.values())]
    del made.input[:]
    made.input.extend(copies)


def _restore_infos(made: GraphProto, untouched: GraphProto, origin: GraphProto, held: set[str]) -> None:
    """The value infos of values that are still there, in their old order, before those of new values."""
    _restore_list(made.value_info, untouched.value_info, origin.value_info, _name)
    now, then = _by_key(made.value_info, _name), _by_key(untouched.value_info, _name)
    there = held | {name for node in made.node for name in node.output}
    kept = []
    for old in origin.value_info:
        if old.name in now:
            kept.append(now.pop(old.name))
        elif old.name in there and old.name not in then:
            kept.append(old)
    first = _by_key(origin.value_info, _name)
    kept += [info for name, info in now.items() if name not in then or name in first]
    copies = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in kept]
    del made.value_info[:]
    made.value_info.extend(copies)


def _by_key(items: Iterable[Proto], key: Callable[[Proto], Any]) -> dict[Any, Proto]:
    found: dict[Any, Proto] = {}
    for item in items:
        found.setdefault(key(item), item)
    return found


def _node_key(node: NodeProto) -> tuple[str, ...] | str:
    outputs: Sequence[str] = tuple(filter(None, node.output))
    return (node.domain, node.op_type, *outputs)


def _function_key(function: onnx.FunctionProto) -> tuple[str, str, str]:
    return function.domain, function.name, getattr(function, "overload", "")


def _name(item: Any) -> str:
    return str(item.name)


def _sparse_name(item: Any) -> str:
    return str(item.values.name)
