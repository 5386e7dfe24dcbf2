"""Writes what a pass saw and did as text: the graph before and after, the difference, the report site by site."""

from __future__ import annotations

import json
from difflib import unified_diff
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laurel_graph.errors import OutputError
from laurel_graph.foreign_names import printable
from laurel_graph.outputs import write as write_file

from .base import ONNX, Pass, PassResult, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from onnx import GraphProto, TensorProto, ValueInfoProto


def as_text(graph: Any) -> str:
    """Returns a graph as text, one value a line; weights as shape, type and a digest of their content."""
    lines = _model_lines(graph) if kind_of(graph) == ONNX else _module_lines(graph)
    return "\n".join(map(printable, lines)) + "\n"


def write(
    folder: Path, number: int, ran: Pass, before: str, result: PassResult, inputs: Iterable[str | Path | None] = ()
) -> None:
    """Writes four files ``NN-name.*``: ``before.txt``, ``after.txt``, ``diff`` and ``json`` (the report).

    *inputs* are files that the passes read.

    Raises:
        OutputError: the folder cannot be made, or a file in it not be written, or is one of *inputs*.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} of the trace cannot be made: {error.strerror or error}.") from None
    stem = f"{number:02d}-{''.join(c if c.isalnum() or c in '-_.' else '_' for c in ran.name)}"
    after = as_text(result.graph) if result.changed else before
    difference = unified_diff(before.splitlines(True), after.splitlines(True), "before", "after", n=1)
    report = {"pass": ran.name, "options": ran.options(), "changed": result.changed, **result.report.to_dict()}
    for suffix, text in (
        ("before.txt", before),
        ("after.txt", after),
        ("diff", "".join(difference)),
        ("json", json.dumps(report, indent=2, default=str) + "\n"),
    ):
        write_file(folder / f"{stem}.{suffix}", text.encode("utf-8", "backslashreplace"), inputs)


def _model_lines(model: Any) -> Iterator[str]:
    imports = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import)
    yield f"ir {model.ir_version}; {imports}"
    yield from (f"metadata {printable(p.key)} = {printable(p.value, 200)}" for p in model.metadata_props)
    yield from _graph_lines(model.graph, "")
    yield from (f"function {function.domain}.{function.name}" for function in model.functions)


def _graph_lines(graph: GraphProto, indent: str) -> Iterator[str]:
    from laurel_graph.onnx_model.walk import subgraphs

    yield from (f"{indent}input {_value(value)}" for value in graph.input)
    yield from (f"{indent}weight {_tensor(tensor)}" for tensor in graph.initializer)
    for node in graph.node:
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        settings = ", ".join(text for item in node.attribute if (text := _attribute(item)))
        outputs, inputs = (", ".join(map(printable, names)) for names in (node.output, node.input))
        yield f"{indent}{outputs} = {operator}({inputs})" + (f" {{{settings}}}" if settings else "")
        for body in subgraphs(node):
            yield from _graph_lines(body, f"{indent}    ")
    yield from (f"{indent}output {_value(value)}" for value in graph.output)


def _value(value: ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = ", ".join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
    return f"{printable(value.name)}: {_kind(tensor.elem_type)}[{dims}]"


def _tensor(tensor: TensorProto) -> str:
    from onnx import TensorProto

    shape = f"{printable(tensor.name)}: {_kind(tensor.data_type)}{list(tensor.dims)}"
    if tensor.data_location == TensorProto.EXTERNAL:
        return f"{shape} in {', '.join(f'{entry.key} {printable(entry.value)}' for entry in tensor.external_data)}"
    content = tensor.raw_data or tensor.SerializeToString(deterministic=True)
    return f"{shape} {sha256(content).hexdigest()[:12]}"


def _kind(element: int) -> str:
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(element)).lower() if element in TensorProto.DataType.values() else "?"


def _attribute(item: Any) -> str:
    from onnx import AttributeProto, helper

    if item.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
        return ""
    if item.type == AttributeProto.TENSOR:
        return f"{item.name} = {_tensor(item.t)}"
    return f"{item.name} = {printable(str(helper.get_attribute_value(item)), 200)}"


def _module_lines(module: Any) -> Iterator[str]:
    for name, parameter in module.named_parameters():
        kind = str(parameter.dtype).removeprefix("torch.")
        yield f"weight {printable(name)}: {kind}{list(parameter.shape)}" + (" trained" * parameter.requires_grad)
    yield from (printable(node.format_node() or str(node), 2000) for node in module.graph.nodes)
