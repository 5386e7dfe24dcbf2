"""Gets a graph out of whatever the user has: nn.Module, GraphModule or ExportedProgram.

An nn.Module goes through ``torch.fx.symbolic_trace`` when that works, because the traced module keeps its layers and
so ``train()`` and ``eval()``; otherwise through ``torch.export`` (non-strict).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from laurel_graph.errors import ModelError
from laurel_graph.foreign_names import LONGEST, is_safe_in_code, printable, safe_paths
from laurel_graph.torch_residual.module import ATTRIBUTES

from .axes import check_program, open_program, program_as_asked
from .guards import SizeGuards, advice_for, refuses_one
from .prepare import plain_forward, unchanged
from .roles import operator_name
from .stopped import refused_inputs, stopped_at, without_logged_tracebacks
from .view import fx_view

if TYPE_CHECKING:
    from laurel_graph.graph_view import GraphView

FROZEN_NOTE = (
    "traced with torch.export: dropout and batch norm stay as they were at tracing time; train() and eval() do not "
    "switch them."
)
_WHOLE_NOTE = "torch.fx.symbolic_trace keeps torch's own layers whole, and their joins out of sight."
_FUSED_NOTE = (
    "it holds transformer layers in torch's fused form, whose adds are out of sight: give the nn.Module, or export it "
    "under torch.backends.mha.set_fastpath_enabled(False)."
)
OPEN_NOTE = (
    "traced with torch.export: the first axis of the inputs is open, the others have the sizes of the example inputs; "
    "give dynamic_shapes= to leave other axes open."
)
FIXED_NOTE = "traced with torch.export for the sizes of the example inputs; give dynamic_shapes= to leave axes open."

ONE_NOTE = "an open axis takes every size but 1."


@dataclass(frozen=True)
class Captured:
    """A traced model.

    Attributes:
        module: what is rewritten and trained; names in *view* are those of its nodes.
        view: the neutral view of it.
        notes: sentences for the user.
        symbolic: traced by ``torch.fx.symbolic_trace``, in which torch's own layers are whole.
    """

    module: fx.GraphModule
    view: GraphView
    notes: tuple[str, ...] = field(default_factory=tuple)
    symbolic: bool = False


class LaurelTracer(fx.Tracer):
    """A tracer that leaves LAuReL residuals whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tells whether *m* stays one node."""
        return type(m).__module__ == "laurel_graph.torch_residual.module" or super().is_leaf_module(
            m, module_qualified_name
        )

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None,
                    type_expr: Any | None = None) -> fx.Node:  # fmt: skip
        """Names no node after a layer called ``self``: it would hide the module in the generated code."""
        if name is None and isinstance(target, str) and target.strip("_").lower() == "self":
            name = "self_"
        return super().create_node(kind, target, args, kwargs, name, type_expr)


def capture(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    *,
    symbolic: bool = True,
) -> Captured:
    """Traces *model* and returns its graph and the view of it.

    Args:
        model: ``nn.Module``, ``fx.GraphModule`` or ``torch.export.ExportedProgram``.
        args: example inputs, positional; needed wherever ``torch.export`` is, and for shapes.
        kwargs: example inputs by name.
        dynamic_shapes: as for ``torch.export.export``, for the route that goes through it: which axes the captured
            graph leaves open. By default the first one of every input is, where the module works for any size of it,
            and a note says which it was.

    Raises:
        ModelError: no route works; names the line where each one failed and what to try next.
    """
    args, kwargs = tuple(args), dict(kwargs or {})
    if isinstance(model, torch.export.ExportedProgram):
        check_paths((*model.state_dict, *model.constants), "the ExportedProgram")
        if dynamic_shapes:
            check_program(model, dynamic_shapes)
        return _captured(unlifted(model), "ExportedProgram", [FROZEN_NOTE])
    if isinstance(model, fx.GraphModule):
        check_paths((str(node.target) for node in model.graph.nodes if node.op in _HOLDING), type(model).__name__)
        module = _with_own_nodes(model)
        notes = add_shapes(module, args, kwargs)
        return _captured(module, type(model).__name__, notes)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"expected an nn.Module, a GraphModule or an ExportedProgram, found {type(model).__name__}. "
            "For an ONNX file give its path."
        )
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"{name} is compiled to TorchScript, which neither torch.fx.symbolic_trace nor torch.export reads. Give "
            "the nn.Module that it was made from, or export it with torch.onnx.export(dynamo=False) and give the file."
        )
    stopped = "its layers being whole"
    if symbolic:
        try:
            with unchanged(model), plain_forward(model), without_logged_tracebacks():
                traced = symbolic_graph(model)
                notes = add_shapes(traced, args, kwargs, strict=True)
            return _captured(traced, name, notes, symbolic=True)
        except Exception as error:  # tracing runs the user's code: anything can come out of it
            stopped = stopped_at(error, model)
    if not args and not kwargs:
        raise ModelError(
            f"{name} cannot be traced by torch.fx.symbolic_trace ({stopped}). Give example inputs, so that "
            "torch.export can try."
        )
    check_paths(module_paths(model), name)
    try:
        with torch.no_grad(), unchanged(model), plain_forward(model), without_logged_tracebacks():
            opened = open_program(model, args, kwargs) if dynamic_shapes is None else None
            program = opened or program_as_asked(model, args, kwargs, dynamic_shapes)
        module = unlifted(program, advice_for(model))
    except Exception as error:  # likewise
        if (refused := refused_inputs(model, args, kwargs)) is not None:
            raise ModelError(
                f"{name} does not run on the example inputs: it stopped at {refused}. Give inputs that it takes (args, "
                "kwargs=)."
            ) from error
        raise ModelError(
            f"{name} could not be traced. torch.fx.symbolic_trace stopped at {stopped}; torch.export stopped at "
            f"{stopped_at(error, model)}. Mend that line (no control flow on values, no items of tensors), attach to "
            "the live model with lg.attach, or export the model to ONNX and give the file."
        ) from error
    notes = [f"torch.fx.symbolic_trace stopped at {stopped}." if symbolic else _WHOLE_NOTE, FROZEN_NOTE]
    if dynamic_shapes is None:
        notes.append(FIXED_NOTE if opened is None else OPEN_NOTE)
    if refuses_one(program):
        notes.append(f"{ONE_NOTE} {advice_for(model)}")
    return _captured(module, name, notes)


def _with_own_nodes(module: fx.GraphModule) -> fx.GraphModule:
    """Returns the module with a graph of its own, in which shapes may be noted; layers and tensors are shared."""
    shared = (*module.parameters(), *module.buffers(), *module.children())
    return deepcopy(module, {id(part): part for part in shared})


def _captured(module: fx.GraphModule, name: str, notes: Sequence[str], symbolic: bool = False) -> Captured:
    view = fx_view(module, name)
    view.notes.extend(notes)
    if any(operator_name(node.target).startswith("_transformer_encoder_layer_fwd") for node in module.graph.nodes):
        view.notes.append(_FUSED_NOTE)
    return Captured(module, view, tuple(view.notes), symbolic)


def symbolic_graph(model: nn.Module, tracer: LaurelTracer | None = None) -> fx.GraphModule:
    """Traces *model* symbolically, as far as its names can stand in generated code under names of their own."""
    tracer = tracer or LaurelTracer()
    tracer.record_stack_traces = True
    graph = tracer.trace(model)
    held = [node for node in graph.nodes if node.op in _HOLDING]
    paths = safe_paths((str(node.target) for node in held), ATTRIBUTES)
    if all(path == safe for path, safe in paths.items()):
        return fx.GraphModule(tracer.root, graph, type(model).__name__)
    parts = {safe: _at(model, path) for path, safe in paths.items()}
    for node in held:
        node.target = paths[str(node.target)]
    module = fx.GraphModule(parts, graph, type(model).__name__)
    module.training = model.training
    return module


_HOLDING = ("call_module", "get_attr")
"""The ops of nodes whose target is the path of something in the module."""


def _at(model: nn.Module, path: str) -> Any:
    for part in path.split("."):
        model = getattr(model, part)
    return model


def check_paths(paths: Iterable[str], owner: str) -> None:
    """Refuses names that torch would write into generated code unescaped.

    Raises:
        ModelError: naming the first one.
    """
    for path in paths:
        if not is_safe_in_code(path):
            raise ModelError(
                f"{owner} has a part named {printable(path, LONGEST)!r}, which torch would paste into the code that it "
                "generates: expected printable characters without quotes and backslashes, and no Python keyword. "
                "Rename it."
            )


def module_paths(model: nn.Module) -> Iterator[str]:
    """Returns the paths of everything that *model* holds under a name."""
    for prefix, part in model.named_modules():
        for name in (*part._parameters, *part._buffers, *part._modules):
            yield f"{prefix}.{name}" if prefix else name


def unlifted(program: torch.export.ExportedProgram, advice: str = "Give inputs of such sizes.") -> fx.GraphModule:
    """Returns the graph of an exported program as a module that trainers may call ``train()`` and ``eval()`` on.

    Args:
        program: the program.
        advice: what to do about inputs of sizes that it does not take.
    """
    module = program.module()
    if not isinstance(module, fx.GraphModule):
        raise ModelError(f"expected the exported program to hold one graph, found {type(module).__name__}.")
    for name in ("train", "eval"):  # torch.export makes them raise, but every trainer calls them
        vars(module).pop(name, None)
    checks = getattr(module, "_guards_fn", None)
    if isinstance(checks, nn.Module):
        module.add_module("_guards_fn", SizeGuards(checks, advice))
    return module


def add_shapes(
    module: fx.GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any], strict: bool = False
) -> list[str]:
    """Runs the graph on fake tensors and notes every value's shape; without example inputs it only says so."""
    known = {node: node.meta["val"] for node in module.graph.nodes if "val" in node.meta}
    if not args and not kwargs:
        return [] if known else ["no example inputs: shapes are unknown."]
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    training = {name: layer.training for name, layer in module.named_modules()}
    try:
        values = _in_placeholder_order(module, args, kwargs)
        if known and _fit(module, values):
            return []
        module.eval()
        with torch.no_grad(), without_logged_tracebacks():
            FakeTensorProp(module, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*values)
    except Exception as error:  # the traced code runs here
        if strict:
            raise
        for node, value in known.items():
            node.meta["val"] = value
        shapes = "are those of an earlier tracing" if known else "are unknown"
        return [f"shapes {shapes}: running the graph stopped at {stopped_at(error, module)}."]
    finally:
        for name, layer in module.named_modules():
            layer.training = training[name]
    return []


def _fit(module: fx.GraphModule, values: Sequence[Any]) -> bool:
    """Whether the shapes that are noted in the graph hold for these inputs."""
    noted = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    return all(
        isinstance(old, torch.Tensor)
        and old.dim() == new.dim()
        and all(a == b for a, b in zip(old.shape, new.shape, strict=True) if isinstance(a, int))
        for old, new in zip(noted, values, strict=False)
        if isinstance(new, torch.Tensor)
    )


def _in_placeholder_order(module: fx.GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    values: list[Any] = []
    remaining = list(args)
    left = dict(kwargs)
    for node in module.graph.nodes:
        if node.op != "placeholder":
            continue
        if remaining:
            values.append(remaining.pop(0))
        elif str(node.target) in left:
            values.append(left.pop(str(node.target)))
        elif node.args:
            values.append(node.args[0])
        else:
            raise ModelError(f"no example input for {node.target!r}; given: {len(args)} positional, {sorted(kwargs)}.")
    if remaining or left:
        raise ModelError(f"the traced graph does not take {len(remaining)} positional inputs and {sorted(left)}.")
    return values
