"""Takes the residuals of :mod:`.onnx` out of an ONNX model again: what was there before, or the reason why not.

The record of what was there comes from the file. So each node of it is held against what stands in its place now: it
adds the same values under the same names, or nothing is taken out. Digests of the parts of the original say whether
the model that comes back is the one that was transformed, to the bit, or what of it was changed since.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto

from laurel_graph.errors import LaurelError, ModelError
from laurel_graph.onnx_model.bodies import scopes_of
from laurel_graph.onnx_model.walk import default_opset, graphs_of
from laurel_graph.onnx_model.weight_file import weight_locations
from laurel_graph.opset.changed import why_not_trained
from laurel_graph.opset.functions import attach
from laurel_graph.opset.laurel_node import LaurelNode
from laurel_graph.opset.plain import unmark
from laurel_graph.opset.schema import (
    DOMAIN,
    METADATA_SITES,
    METADATA_UNDO,
    PREFIX,
    damaged,
    laurel_nodes,
    read_metadata,
    read_specs,
)
from laurel_graph.opset.undo import HOLD_TENSORS, digests_of, old_node, put_records, read_undo
from laurel_graph.passes.read_onnx.fused_adds import take_apart

from .onnx import key_of


def remove(model: ModelProto, *, compare: bool = True, folder: Path | None = None) -> tuple[str, ...]:
    """Gives *model* back as it was before :func:`~.onnx.insert`, in place: every proto, metadata, opset, IR version.

    Args:
        model: the model.
        compare: look at all of it, weights included, to tell whether it is the original.
        folder: of the model's weight files, for that.

    Returns:
        Sentences: what is not as it was, because the rest of the model was changed since.

    Raises:
        ModelError: the model holds no record of an insertion, the record is damaged or of another model, or the nodes
            were changed since. The model is of no use then.
    """
    if why := why_not_trained(model):
        raise ModelError(f"the original cannot be given back: {why}")
    undo = read_undo(model)
    if undo is None:
        hint = (
            "its LAuReL residuals came with the export from torch: remove them there and export again."
            if read_metadata(model, METADATA_SITES)
            else "expected a model written by laurel transform."
        )
        raise ModelError(f"there is nothing to remove: {hint}")
    before = dict(undo["metadata"])
    put_in = set(read_specs(model)) - _sites_of(before)
    version = undo["ir_version"]
    if version is not None and version > model.ir_version:
        raise damaged(METADATA_UNDO, f"it says IR version {version} of a model that has {model.ir_version} now")
    _restore_nodes(model, undo["nodes"])
    _check_rest(model, undo, put_in)
    ours = set(undo["tensors"])
    _drop(model.graph.initializer, ours)
    _drop(model.graph.input, set(undo["inputs"]))
    put_records(model, before)
    attach(model)
    if not any(laurel_nodes(graph) for graph in graphs_of(model.graph)):
        unmark(model)
    if undo["domain"]:
        for index, entry in reversed(list(enumerate(model.opset_import))):
            if entry.domain == DOMAIN:
                del model.opset_import[index]
    if version is None:
        model.ClearField("ir_version")
    else:
        model.ir_version = version
    return _changes(model, undo, folder) if compare else ()


def _sites_of(metadata: Mapping[str, str]) -> set[str]:
    """The sites that a model had before the insertion: an export from torch may hold some."""
    try:
        return {str(row["site"]) for row in json.loads(metadata.get(METADATA_SITES, "[]"))}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise damaged(METADATA_UNDO, "its metadata hold no list of sites") from None


def _restore_nodes(model: ModelProto, records: Sequence[dict[str, Any]]) -> None:
    first = {(record.get("body", ""), record["new"][0]): record for record in records}
    places: list[tuple[GraphProto, int, dict[str, Any]]] = []
    for path, graph in scopes_of(model).items():
        for index, node in enumerate(graph.node):
            place = path, key_of(node)
            if place not in first:
                place = "", key_of(node)  # the records of older versions do not say in which body
            record = first.get(place)
            if record and record["new"] == [key_of(other) for other in graph.node[index : index + len(record["new"])]]:
                places.append((graph, index, first.pop(place)))
    if len(places) != len(records):
        raise ModelError(
            f"{len(records) - len(places)} of {len(records)} rewritten nodes are not there any more: the model was "
            "changed after laurel transform (deployed, or optimised); remove from the file before that."
        )
    opset = default_opset(model)
    for graph, index, record in reversed(places):
        old = old_node(record)
        _check_place(old, graph.node[index : index + len(record["new"])], opset)
        del graph.node[index : index + len(record["new"])]
        graph.node.insert(index, old)


def _check_place(old: NodeProto, new: Sequence[NodeProto], opset: int) -> None:
    """Makes sure that a recorded node adds what the nodes add that stand in its place, under the same names.

    Raises:
        ModelError: it does something else: the record is of another model, or the graph was changed since.
    """
    place = key_of(new[-1])
    ours = [LaurelNode.of(node) for node in new if node.domain == DOMAIN]
    try:
        parts = take_apart(old, opset, "float32", str)
    except (LaurelError, IndexError):
        raise _other(place, f"a node of type {old.op_type!r}, which adds nothing that is known here") from None
    if not ours or None in ours:
        raise _other(place, "an addition, and the nodes there are not those of laurel transform")
    read = Counter(name for node in new for name in (node.input[:2] if node.domain == DOMAIN else node.input) if name)
    made = {name for node in new for name in node.output if name}
    free = Counter({name: count for name, count in read.items() if name not in made and not _is_of(name, ours)})
    wanted = Counter(name for name in old.input if name)
    open_add = old.op_type in ("Add", "Sum")
    if free != wanted if open_add else set(free) != set(wanted):
        raise _other(place, f"{old.op_type} of {sorted(wanted)}, and the nodes there read {sorted(free)}")
    if not {name for name in old.output if name} <= made:
        raise _other(place, f"a node that makes {list(old.output)}, and the nodes there make {sorted(made)}")
    kinds = Counter(node.op_type for node in (*parts.before, *parts.after))
    if kinds - Counter(node.op_type for node in new):
        raise _other(place, f"a node of type {old.op_type!r}, and the nodes there are {[n.op_type for n in new]}")


def _is_of(name: str, ours: Iterable[LaurelNode | None]) -> bool:
    """Whether a value is a tensor of one of the sites."""
    return any(node is not None and name.startswith(f"{PREFIX}.{node.site}.") for node in ours)


def _other(place: str, what: str) -> ModelError:
    return ModelError(
        f"the original cannot be given back: the record of {place!r} is {what}; the model was changed after laurel "
        "transform, or the record is of another model. Remove from the file as laurel transform wrote it."
    )


def _check_rest(model: ModelProto, undo: Mapping[str, Any], put_in: set[str]) -> None:
    """Makes sure that nothing of what was put in would stay.

    Raises:
        ModelError: nodes or tensors of ours are left that the record does not speak of.
    """
    nodes = [node for graph in graphs_of(model.graph) for node in laurel_nodes(graph)]
    left = [node for node in nodes if undo["domain"] or (ours := LaurelNode.of(node)) is None or ours.site in put_in]
    if left:
        raise _other(key_of(left[0]), f"missing, beside those of {len(undo['nodes'])} other nodes")
    names = {tensor.name for tensor in model.graph.initializer} - set(undo["tensors"])
    tensors = [name for name in sorted(names) if name.startswith(tuple(f"{PREFIX}.{site}." for site in put_in))]
    if tensors:
        raise damaged(METADATA_UNDO, f"the tensor {tensors[0]!r} was put in, and it does not say so")


def _changes(model: ModelProto, undo: Mapping[str, Any], folder: Path | None) -> tuple[str, ...]:
    """Says what of a restored model is not what was transformed, or was not compared."""
    digests = undo.get("digests")
    if not digests:
        return (
            "the residual connections are out again; whether the rest is what was transformed cannot be told, because "
            "the record of an older version, or one that was rebuilt, does not say what that was.",
        )
    covered = bool(undo.get("files"))
    blind = bool(weight_locations(model)) and (not covered or folder is None)
    unknown = HOLD_TENSORS if covered and blind else ()
    found = digests_of(model, folder if covered else None)
    changed = [part for part in found if found[part] != digests.get(part) and part not in unknown]
    if changed:
        return (
            "what comes back is not the original to the bit: the model was changed after laurel transform "
            f"({', '.join(changed)}); the residual connections are out again, everything else is as it is now.",
        )
    if blind:
        return (
            "the residual connections are out again, and all that the model file itself holds is as it was; whether "
            "the numbers in its weight files are cannot be told, because the folder, or a record of them, is missing.",
        )
    return ()


def _drop(items: Any, names: set[str]) -> None:
    for index, item in reversed(list(enumerate(items))):
        if item.name in names:
            del items[index]
