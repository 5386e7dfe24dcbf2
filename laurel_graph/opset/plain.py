"""The two forms of a transformed model: nodes of ``ai.laurel``, or plain ``ai.onnx`` nodes in their place.

Runtimes that know no functions of a model's own (OpenVINO, OpenCV, tract) run the plain form alone. Each node of ours
is written out as its function body; a record in the metadata keeps the node and the names of what stands for it. When
the file is read again, the nodes are put back: only where what stands there is, node for node, the body of the node
that the record names. So records are read, not trusted, and a file that a tool changed at a site is refused.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from ..errors import ModelError
from ..onnx_model.tensors import array_of
from ..onnx_model.walk import copy_of, default_opset, graphs_of, value_names
from .functions import attach, body_dtypes, detach, function
from .laurel_node import LaurelNode
from .nodes import ELEMENT_TYPES
from .schema import DOMAIN, METADATA_PLAIN, damaged, laurel_nodes, read_json, unknown_operator


def is_plain(model: ModelProto) -> bool:
    """Whether the model is kept in plain form: it is written so, also while its nodes are of ours in memory."""
    return any(prop.key == METADATA_PLAIN for prop in model.metadata_props)


def records_of(model: ModelProto) -> list[tuple[NodeProto, list[str]]]:
    """Returns every node that is written out, with the values that the nodes in its place make, in their order.

    Raises:
        ModelError: the record is damaged.
    """
    rows = read_json(model, METADATA_PLAIN)
    if rows is None:
        rows = []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise damaged(METADATA_PLAIN, "expected a list of nodes")
    found = []
    for row in rows:
        node, made = NodeProto(), row.get("made")
        if not isinstance(made, list) or not made or not all(isinstance(name, str) for name in made):
            raise damaged(METADATA_PLAIN, "a record of it does not say what stands in the node's place")
        try:
            node.ParseFromString(base64.b64decode(row["node"], validate=True))
        except (KeyError, TypeError, ValueError, DecodeError):
            raise damaged(METADATA_PLAIN, "a record of it holds no node") from None
        if not _is_one_of_ours(node):
            raise damaged(METADATA_PLAIN, f"a record of it is no whole node of {DOMAIN}")
        found.append((node, made))
    return found


def _is_one_of_ours(node: NodeProto) -> bool:
    ours = LaurelNode.of(node)
    return (
        ours is not None
        and ours.is_whole
        and 1 <= len(node.output) <= len(ours.operator.outputs)
        and all((*node.input, *node.output))
        and all(item.name == "epsilon" and item.type == AttributeProto.FLOAT for item in node.attribute)
    )


def write_out(model: ModelProto) -> list[str]:
    """Puts plain nodes in the place of every node of ``ai.laurel``, in place, and keeps the record of it.

    Returns:
        The outputs of the nodes that were written out.

    Raises:
        ModelError: a node is none of the operators, a record is damaged, or the model's opset is older than 7.
    """
    records = records_of(model)
    taken = set(value_names(model))
    written: list[str] = []
    dtypes = body_dtypes(model)
    opset = default_opset(model)
    for graph in list(graphs_of(model.graph)):
        here: list[tuple[NodeProto, list[str]]] = []
        for index in reversed([i for i, node in enumerate(graph.node) if node.domain == DOMAIN]):
            node = NodeProto()
            node.CopyFrom(graph.node[index])
            if LaurelNode.of(node) is None:
                raise ModelError(unknown_operator(node.op_type))
            plain = _body_of(node, opset, dtypes[node.op_type], taken)
            taken.update(name for each in plain for name in each.output)
            del graph.node[index]
            for each in reversed(plain):
                graph.node.insert(index, each)
            here.append((node, [each.output[0] for each in plain]))
        records += reversed(here)
        written += [node.output[0] for node, _ in reversed(here)]
    detach(model)
    _keep(model, records)
    return written


def put_back(model: ModelProto) -> list[str]:
    """Puts the nodes of ``ai.laurel`` back in the place of what stands for them, in place; the inverse.

    The model stays marked as one that is kept in plain form.

    Returns:
        The outputs of the nodes that were put back.

    Raises:
        ModelError: a record is damaged, or what stands at a site is not what was written there. The model is unchanged.
    """
    records = records_of(model)
    if not records:
        return []
    opset = default_opset(model)
    graphs = [(graph, {name: node for node in graph.node for name in node.output}) for graph in graphs_of(model.graph)]
    readers = _readers(model)
    found = [_standing(node, made, graphs, readers, opset) for node, made in records]
    places = [(id(graph), name) for (_, made), graph in zip(records, found, strict=True) for name in made]
    if len(set(places)) != len(places):
        raise damaged(METADATA_PLAIN, "two of its records speak of one node")
    for (node, made), graph in zip(records, found, strict=True):
        keys = set(made)
        indices = [index for index, other in enumerate(graph.node) if other.output and other.output[0] in keys]
        graph.node.insert(indices[-1] + 1, node)
        for index in reversed(indices):
            del graph.node[index]
    _keep(model, [])
    attach(model)
    return [node.output[0] for node, _ in records]


def with_nodes_put_back(model: ModelProto) -> ModelProto:
    """Returns a model with :func:`put_back`: a copy where something is written out, else *model* itself.

    Raises:
        ModelError: see :func:`put_back`.
    """
    if not records_of(model):
        return model
    copy = copy_of(model)
    put_back(copy)
    return copy


def shown_nodes(model: ModelProto) -> list[NodeProto]:
    """Returns the nodes of ``ai.laurel`` of the main graph, and those that are written out in it."""
    made = {name for node in model.graph.node for name in node.output}
    written = [node for node, _ in records_of(model) if node.output[0] in made]
    return [*laurel_nodes(model.graph), *written]


def unmark(model: ModelProto) -> None:
    """Makes the model one that is kept in nodes of ``ai.laurel``; to be called when they are put back."""
    for index, prop in reversed(list(enumerate(model.metadata_props))):
        if prop.key == METADATA_PLAIN:
            del model.metadata_props[index]


def _keep(model: ModelProto, records: Sequence[tuple[NodeProto, Sequence[str]]]) -> None:
    text = json.dumps(
        [{"node": base64.b64encode(node.SerializeToString()).decode(), "made": list(made)} for node, made in records]
    )
    for prop in model.metadata_props:
        if prop.key == METADATA_PLAIN:
            prop.value = text
            return
    model.metadata_props.add(key=METADATA_PLAIN, value=text)


def _readers(model: ModelProto) -> dict[str, int]:
    """Value to how often it is read, by nodes or as an output of a graph."""
    count: dict[str, int] = {}
    for graph in graphs_of(model.graph):
        read = [value.name for value in graph.output]
        for node in graph.node:
            read += node.input
        for name in read:
            count[name] = count.get(name, 0) + 1
    return count


def _body_of(node: NodeProto, opset: int, dtype: str, taken: set[str]) -> list[NodeProto]:
    """Returns the nodes that stand for *node*; values inside get names that are not taken."""
    ours = LaurelNode.of(node)
    assert ours is not None
    body = function(ours.operator, opset, dtype, len(node.output))
    prefix = f"{node.output[0]}/laurel"
    while any(name.startswith(f"{prefix}/") for name in taken):
        prefix += "_"
    names = {**dict(zip(body.input, node.input, strict=True)), **dict(zip(body.output, node.output, strict=True))}
    given = {attribute.name: attribute for attribute in node.attribute}
    plain: list[NodeProto] = []
    for inner in body.node:
        other = NodeProto()
        other.CopyFrom(inner)
        other.input[:] = [names.get(name, f"{prefix}/{name}") if name else "" for name in inner.input]
        other.output[:] = [names.get(name, f"{prefix}/{name}") if name else "" for name in inner.output]
        other.name = f"{prefix}/{len(plain)}"
        for attribute in other.attribute:
            if attribute.ref_attr_name:
                attribute.CopyFrom(_given(attribute, given))
        plain.append(other)
    return plain


def _given(reference: AttributeProto, given: Mapping[str, AttributeProto]) -> AttributeProto:
    """An attribute of the node in the place of a reference to it."""
    if reference.ref_attr_name not in given:
        raise ModelError(f"a node of {DOMAIN} has no attribute {reference.ref_attr_name!r}.")
    found = AttributeProto()
    found.CopyFrom(given[reference.ref_attr_name])
    found.name = reference.name
    return found


def _standing(
    node: NodeProto,
    made: Sequence[str],
    graphs: Sequence[tuple[GraphProto, Mapping[str, NodeProto]]],
    readers: Mapping[str, int],
    opset: int,
) -> GraphProto:
    """Returns the graph in which exactly the body of *node* stands under the names *made*.

    Raises:
        ModelError: something else stands there, or something else reads what is inside.
    """
    outside = {*node.input, *node.output}
    for graph, makers in graphs:
        if not all(name in makers for name in made):
            continue
        standing = [makers[name] for name in made]
        inside = {name for other in standing for name in other.output} - outside
        read_there = Counter(name for other in standing for name in other.input)
        bodies = (_body_of(node, opset, dtype, set()) for dtype in ELEMENT_TYPES)
        if any(_are_alike(standing, body, outside) for body in bodies) and all(
            readers.get(name, 0) == read_there[name] for name in inside
        ):
            return graph
    raise ModelError(
        f"the nodes in the place of {node.op_type} {node.output[0]!r} are not the ones that were written there: "
        "another tool changed them. Work on the file as laurel wrote it, and use the tool on the result."
    )


def _are_alike(found: Sequence[NodeProto], wanted: Sequence[NodeProto], outside: set[str]) -> bool:
    """Whether two rows of nodes are the same but for names of nodes and of the values inside."""
    if len(found) != len(wanted):
        return False
    names: dict[str, str] = {}
    for other, body in zip(found, wanted, strict=True):
        if (other.op_type, other.domain or "") != (body.op_type, body.domain) or len(other.input) != len(body.input):
            return False
        if [names.get(name, name) for name in other.input] != list(body.input):
            return False
        if _attributes(other) != _attributes(body) or len(other.output) != len(body.output):
            return False
        for mine, theirs in zip(other.output, body.output, strict=True):
            if (mine in outside or theirs in outside) and mine != theirs:
                return False
            names[mine] = theirs
    return True


def _attributes(node: NodeProto) -> dict[str, object]:
    """Name to content; numbers of a tensor count as they are, however they are stored."""
    found: dict[str, object] = {}
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR and attribute.t.data_location != TensorProto.EXTERNAL:
            tensor = attribute.t
            found[attribute.name] = (tensor.data_type, tuple(tensor.dims), array_of(tensor).tobytes())
        else:
            found[attribute.name] = attribute.SerializeToString(deterministic=True)
    return found
