"""Writes a rewritten torch module as an ONNX file with bare ``ai.laurel`` nodes and their function bodies."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from laurel_graph import onnx_file
from laurel_graph.adapters import files_of
from laurel_graph.adapters.trained import own_spec
from laurel_graph.config import LaurelConfig, SiteSpec
from laurel_graph.errors import ModelError, check_order
from laurel_graph.fingerprint.digest import module_digests
from laurel_graph.importer import META
from laurel_graph.onnx_model.tensors import make_tensor
from laurel_graph.onnx_model.walk import default_opset, graphs_of
from laurel_graph.opset.functions import attach
from laurel_graph.opset.laurel_node import LaurelNode
from laurel_graph.opset.nodes import ELEMENT_TYPES
from laurel_graph.opset.plain import write_out
from laurel_graph.opset.schema import METADATA_BASE, PREFIX, laurel_nodes, tensor_name
from laurel_graph.opset.undo import write_records
from laurel_graph.outputs import staged
from laurel_graph.outputs.models import place_weights, stage_model
from laurel_graph.passes.read_fx.axes import check_open, open_program
from laurel_graph.passes.read_fx.capture import FIXED_NOTE, FROZEN_NOTE, ONE_NOTE, check_paths, module_paths
from laurel_graph.passes.read_fx.guards import refuses_one
from laurel_graph.passes.read_fx.prepare import plain_forward, set_mode
from laurel_graph.passes.read_fx.stopped import errors_alone, without_logged_tracebacks
from laurel_graph.torch_residual.module import CONFIG, laurel_modules
from laurel_graph.torch_residual.torch_ops import ONE, OUTER, SITE, exporting

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_CHATTY = ("torch.onnx", "onnxscript", "onnx_ir")
"""Loggers that warn of what concerns no user of ours: packages that are not needed, weights that were kept."""

IN_MEMORY = 2**30
"""Bytes of weights up to which the file is made in memory; above, the weights go into a file beside it."""


def export_onnx(
    module: nn.Module,
    args: Any,
    path: str | Path,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    opset: int | None = None,
    portable: bool = False,
) -> Path:
    """Writes *module* as an ONNX file that runs without our kernels, and faster with them.

    Each LAuReL residual becomes one ``ai.laurel`` node (one per add of an n-ary join) with its resolved tensors under
    their own names, ``laurel.<site>.alpha`` and so on, even where they are equal; all other weights keep the names of
    the module's parameters. The file can be imported, patched with adapters and deployed like one that
    ``laurel transform`` wrote. The module is exported in eval mode and is the same afterwards.

    Args:
        module: a rewritten module, or any module that holds one.
        args: example inputs: one tensor or a tuple of positional inputs.
        path: the file to write; models of more than 1 GB get a second file ``<path>.<digest>.data`` for their weights.
        kwargs: example inputs by name.
        dynamic_shapes: as for ``torch.export.export``: which axes are open, and their names; ``{}`` for none. By
            default the first axis of every input is, where the module works for any size of it; a warning says where
            it does not.
        opset: version of the default ONNX operator set; ``None`` takes the exporter's own.
        portable: leave plain ``ai.onnx`` nodes, for runtimes that know no functions; see :func:`laurel_graph.inline`.

    Returns:
        The path written.

    Raises:
        OutputError: *path* cannot be written, or is the file that *module* was imported from.
        ModelError: torch cannot export the module, or not at that opset, or not with the axes open that
            *dynamic_shapes* names; says why.
        RewriteError: a join has more axes than the operator set knows.
    """
    check_order("export_onnx(module, args, path)", args, path, ("inputs", "path"))
    check_paths(module_paths(module), type(module).__name__)
    args = tuple(args) if isinstance(args, (tuple, list)) else (args,)
    kwargs = dict(kwargs or {})
    with staged(path, files_of(module)) as aside:
        with (
            set_mode(module),
            plain_forward(module),
            exporting(module),
            warnings.catch_warnings(),
            torch.no_grad(),
            without_logged_tracebacks(),
            errors_alone(*_CHATTY),
        ):
            warnings.simplefilter("ignore")
            program, notes = _export(module, args, kwargs, dynamic_shapes, opset)
            held = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
            with _told(module):
                optimise(program.model, held)
            large = sum(t.nbytes for t in (*module.parameters(), *module.buffers())) > IN_MEMORY
            with aside.telling():
                exported = aside.space.new_folder() / "model.onnx"
                program.save(str(exported), external_data=large, keep_initializers_as_inputs=False)
        model = onnx_file.read(exported)
        if opset is not None and default_opset(model) != opset:
            raise ModelError(
                f"{type(module).__name__} cannot be written at opset {opset}: torch's exporter reaches "
                f"{default_opset(model)} for its operators. Leave opset out, or give that one."
            )
        for note in notes:
            warnings.warn(note, stacklevel=2)
        if dynamic_shapes is None:
            _name_batch(model.graph)
        else:
            check_open(model.graph, module, args, kwargs, dynamic_shapes)
        finish(model, module)
        weights = exported.with_name(f"{exported.name}.data")
        if weights.exists():
            place_weights(aside, model, weights, weights.name)
        if portable:
            write_out(model)
        stage_model(aside, model)
        aside.publish()
    return Path(path)


def notes_of_file(traced: Sequence[str], warned: Sequence[str]) -> tuple[str, ...]:
    """Returns the notes on tracing a module and the warnings of writing it, without what the second say again.

    Args:
        traced: notes of the transformation.
        warned: what :func:`export_onnx` warned of.
    """
    again = {FROZEN_NOTE}  # what train() does concerns no file
    if any(text.startswith(_FIXED) for text in warned):
        again.add(FIXED_NOTE)
    at_one = any(_AT_ONE in text for text in warned)
    kept = [text for text in traced if text not in again and not (at_one and text.startswith(ONE_NOTE))]
    return tuple(dict.fromkeys((*kept, *warned)))


def _export(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any, opset: int | None
) -> tuple[Any, list[str]]:
    """Exports with the axes open that were named, or else the first ones where the module allows it.

    Returns:
        What torch made, and what to warn of.
    """
    options: dict[str, Any] = {"dynamo": True, "opset_version": opset, "verbose": False}
    options["optimize"] = False  # it merges equal tensors and renames changed ones: see optimise
    if dynamic_shapes is None and (opened := open_program(module, args, kwargs)) is not None:
        notes = [_OTHERWISE_AT_ONE.format(type(module).__name__)] if refuses_one(opened) else []
        with suppress(Exception):  # what an open axis does not stop is told below
            return torch.onnx.export(opened, **options), notes
    with _told(module):
        return torch.onnx.export(module, args, kwargs=kwargs, dynamic_shapes=dynamic_shapes or None, **options), []


_AT_ONE = "does something else where the size of an open axis is 1"
_FIXED = "the file takes the sizes of the example inputs alone"
_OTHERWISE_AT_ONE = (
    f"{{}} {_AT_ONE}: the file holds for every other size. For that one "
    "write a second file, with example inputs of size 1 and dynamic_shapes={{}}."
)


@contextmanager
def _told(module: nn.Module) -> Iterator[None]:
    """Says what stopped torch's exporter.

    Raises:
        ModelError: something did.
    """
    try:
        yield
    except Exception as error:  # the module's own code runs here
        lines = [line for line in str(error.__cause__ or error).splitlines() if line.strip()]
        reason = " ".join(lines[:3])[:600].rstrip(".") or type(error).__name__
        raise ModelError(
            f"{type(module).__name__} cannot be exported to ONNX: {reason}. Check the inputs and dynamic_shapes; "
            "dynamic_shapes={} keeps the sizes of the example inputs."
        ) from error


def _name_batch(graph: onnx.GraphProto) -> None:
    """Calls the size of the inputs' first axis ``batch`` where it is open, and warns where it is not."""
    held = {tensor.name for tensor in graph.initializer}
    first = [value for value in graph.input if value.name not in held and value.type.tensor_type.shape.dim]
    names = dict.fromkeys(dim.dim_param for value in first if (dim := value.type.tensor_type.shape.dim[0]).dim_param)
    known = {name: f"batch_{place}" if place > 1 else "batch" for place, name in enumerate(names, 1)}
    for info in (*graph.input, *graph.output, *graph.value_info):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda found: known.get(found[0], found[0]), dim.dim_param)
    if first and not names:
        sizes = ", ".join(f"{value.name!r} {value.type.tensor_type.shape.dim[0].dim_value}" for value in first)
        warnings.warn(
            f"{_FIXED} (first axis: {sizes}): the module does not work for "
            "others, or was captured for these. Give dynamic_shapes= to lg.transform and export_onnx to say which axes "
            "are open, or dynamic_shapes={} to be content.",
            stacklevel=3,
        )


def optimise(model: ir.Model, held: Collection[str]) -> None:
    """Runs the exporter's own optimiser on a fresh model with the tensors *held* out of its sight, in place.

    What the exporter makes of constants of its own (a missing bias of a convolution is Shape, Expand, CastLike, Expand)
    becomes what a plain export writes; a weight that the optimiser cannot see is neither merged with an equal one, nor
    folded into a norm, nor dropped for its value, and keeps its name.
    """
    from onnxscript import optimizer

    values = {name: value for name, value in model.graph.initializers.items() if name in held}
    tensors = {name: value.const_value for name, value in values.items()}
    for value in values.values():
        value.const_value = None
    optimizer.optimize(model)
    for name, value in values.items():
        value.const_value = tensors[name]


def finish(model: onnx.ModelProto, module: nn.Module) -> None:
    """Turns a freshly exported model into one of ours, in place: tensors, names, metadata, function bodies."""
    from onnx import helper

    modules = laurel_modules(module)
    taken = {value.name for value in (*model.graph.input, *model.graph.initializer)}
    taken.update(output for node in model.graph.node for output in node.output)
    renamed: dict[str, str] = {}
    tensors: dict[str, onnx.TensorProto] = {}
    calls: dict[str, int] = {}
    replaced: set[str] = set()
    for node in laurel_nodes(model.graph):
        site = helper.get_node_attr_value(node, SITE).decode()
        outer = bool(helper.get_node_attr_value(node, OUTER))
        del node.attribute[:]
        resolved = modules[site].resolved()
        if outer:
            resolved = {"alpha": resolved["alpha"], "beta": torch.ones_like(resolved["alpha"]).flatten()[0]}
        inputs = ours.inputs if (ours := LaurelNode.of(node)) is not None else ()
        for place, name in enumerate(inputs):
            if name in resolved:
                full = tensor_name(site, ONE if outer and name == "beta" else name)
                replaced.add(node.input[place])
                node.input[place] = full
                tensors[full] = _tensor(full, resolved[name])
        count = calls[site] = calls.get(site, 0) + 1
        number = f"_{count}" if count > 1 else ""
        joins = modules[site].joins
        name = joins[count - 1].name if count <= len(joins) else ""
        name = name if name and name not in taken else f"{tensor_name(site, 'output')}{number}"
        taken.add(name)
        renamed[node.output[0]] = name
        node.name = f"{PREFIX}.{site}{number}"
    renamed |= _original_names(module, model.graph, taken)
    _rename(model.graph, renamed)
    _replace_tensors(model.graph, replaced, tensors)
    specs = [own_spec(modules[site]) for site in calls]
    if specs:
        config = getattr(module, "meta", {}).get(CONFIG) or common_config(specs).to_json()
        write_records(model, config, specs)
        base = json.dumps(module_digests(module))
        model.metadata_props.add(key=METADATA_BASE, value=base)
    attach(model)


def _tensor(name: str, value: torch.Tensor) -> onnx.TensorProto:
    array = value.detach().cpu()
    kind = ELEMENT_TYPES[str(array.dtype).removeprefix("torch.")]
    return make_tensor(name, (array.float() if array.dtype == torch.bfloat16 else array).numpy(), kind)


def _original_names(module: nn.Module, graph: onnx.GraphProto, taken: Collection[str]) -> dict[str, str]:
    """Returns path to name in the file of an imported module's weights, where the name is free in *graph*."""
    record = getattr(module, "meta", {}).get(META)
    names = record.tensors if record is not None else {}
    held = {tensor.name for tensor in graph.initializer}
    first = {name: path for path, name in reversed(names.items()) if path in held and name not in taken}
    return {path: name for name, path in first.items()}


def _rename(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    """Renames values wherever they are made, read, handed out or described."""
    for inner in graphs_of(graph):
        for tensor in inner.initializer:
            tensor.name = renamed.get(tensor.name, tensor.name)
        for node in inner.node:
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]
        for info in (*inner.output, *inner.value_info):
            info.name = renamed.get(info.name, info.name)


def _replace_tensors(graph: onnx.GraphProto, old: set[str], new: Mapping[str, onnx.TensorProto]) -> None:
    """Puts the initializers *new* into the graph; takes out those of *old* that nothing reads any more."""
    read = {name for inner in graphs_of(graph) for node in inner.node for name in node.input}
    gone = {name for name in old if name not in read} | set(new)
    kept = [tensor for tensor in graph.initializer if tensor.name not in gone]
    infos = [info for info in graph.value_info if info.name not in gone]
    del graph.initializer[:]
    del graph.value_info[:]
    graph.initializer.extend([*kept, *new.values()])
    graph.value_info.extend(infos)


def common_config(specs: Sequence[SiteSpec]) -> LaurelConfig:
    """Returns a config that covers *specs*, for a module that was built without one."""
    first, variant = specs[0], "+".join(dict.fromkeys(one.name for spec in specs for one in spec.terms))
    ranks = {spec.rank for spec in specs if spec.rank}
    return LaurelConfig(
        variant=variant,
        rank=ranks.pop() if len(ranks) == 1 else None,
        weights=first.weights,
        per_channel=first.per_channel,
        init=first.init,
        previous=max(1, *(spec.previous for spec in specs)),
        previous_map=first.previous_map,
        seed=first.seed,
        options={name: value for spec in specs for name, value in spec.options},
    )
