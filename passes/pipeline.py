"""The passes in a row: what ``lg.inspect``, ``lg.transform`` and ``lg.remove`` run, on torch modules and ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from laurel_graph.config import LaurelConfig
from laurel_graph.detection import Detection, SitePlan
from laurel_graph.errors import ModelError, OutputError

if TYPE_CHECKING:
    import onnx
    from torch import fx, nn
    from torch.export import ExportedProgram

    Model = str | Path | onnx.ModelProto | nn.Module | ExportedProgram


@dataclass(frozen=True)
class TransformReport:
    """What a transformation did.

    Attributes:
        detection: every join with its verdict.
        plans: what was put in, one plan per rewritten site.
        skipped: ``(site, reason)`` of the residual connections left alone.
        base_parameters: number of parameters of the model before.
    """

    detection: Detection
    plans: tuple[SitePlan, ...]
    skipped: tuple[tuple[str, str], ...]
    base_parameters: int

    @property
    def parameters(self) -> int:
        """Number of new, trainable parameters."""
        return sum(plan.spec.parameter_count() for plan in self.plans)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form of ``laurel transform --json``."""
        return {
            "sites": [{**plan.spec.to_dict(), "parameters": plan.spec.parameter_count()} for plan in self.plans],
            "skipped": [{"site": site, "reason": reason} for site, reason in self.skipped],
            "parameters": self.parameters,
            "base_parameters": self.base_parameters,
            "notes": list(self.detection.notes),
        }


@dataclass(frozen=True)
class TransformResult:
    """A transformed model and what was done to it.

    Attributes:
        model: a ``torch.fx.GraphModule``, the path of the ONNX file written, or a ``ModelProto`` where no output was
            named.
        report: what was done.
    """

    model: Any
    report: TransformReport


def inspect(
    model: Model, args: Any = (), kwargs: Mapping[str, Any] | None = None, dynamic_shapes: Any = None
) -> Detection:
    """Finds every residual connection of *model* and changes nothing.

    Args:
        model: an ``.onnx`` path, a ``ModelProto``, an ``nn.Module``, a ``GraphModule`` or an ``ExportedProgram``.
        args: example inputs of a torch module: one tensor or a tuple of positional inputs.
        kwargs: example keyword inputs of a torch module.
        dynamic_shapes: as for ``torch.export.export``, where a torch module has to be captured by it.

    Returns:
        The verdict on every add.

    Raises:
        ModelError: the model cannot be read or traced.
    """
    if _is_onnx(model):
        from laurel_graph.passes.detect.rule import detect
        from laurel_graph.passes.read_onnx.view import view_of

        proto, name = _read(model)
        return replace(detect(view_of(proto)), model=name)
    return _capture_and_detect(model, args, kwargs, dynamic_shapes)[1]


def transform(
    model: Model,
    config: LaurelConfig | None = None,
    args: Any = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    output: str | Path | None = None,
    adapter_inputs: bool = False,
) -> TransformResult:
    """Replaces the residual connections of *model* by LAuReL residuals that compute the same bits at the start.

    What is passed in stays as it is: a torch module is traced and its copy frozen but for the new parameters, sharing
    the memory of the weights (not of buffers, which batch norms write); an ONNX file is read and never written.

    Args:
        model: as for :func:`inspect`.
        config: what to put in; by default ``LaurelConfig()``.
        args: example inputs of a torch module.
        kwargs: example keyword inputs of a torch module.
        dynamic_shapes: as for ``torch.export.export``: the axes of the inputs that stay open, where a torch module
            cannot be traced symbolically and is captured for its example inputs.
        output: where to write the transformed ONNX file; required for weights in external files to be found.
        adapter_inputs: make the LAuReL tensors of an ONNX graph overridable inputs, so that ORT can switch adapters
            per request.

    Raises:
        ModelError: the model cannot be read or traced.
        NoResidualError: nothing to rewrite was found; lists the nearest misses.
        SelectorError: a site selector matched nothing.
        ConfigError: a rank does not fit a site.
        OutputError: *output* cannot be written, or is the input.
    """
    from .select import select

    config = config or LaurelConfig()
    if _is_onnx(model):
        from laurel_graph.onnx_model import tensors as onnx_tensors
        from laurel_graph.outputs.models import write_model
        from laurel_graph.passes.detect.rule import detect
        from laurel_graph.passes.read_onnx.view import view_of
        from laurel_graph.passes.rewrite.onnx import insert

        proto, name, source = _read_to_change(model, output)
        detection = replace(detect(view_of(proto)), model=name)
        selection = select(detection, config)
        base = onnx_tensors.count_parameters(proto)
        insert(proto, selection.plans, config, adapter_inputs=adapter_inputs)
        report = TransformReport(detection, selection.plans, selection.skipped, base)
        if output is None:
            return TransformResult(proto, report)
        return TransformResult(write_model(proto, output, source), report)
    if output is not None:
        raise OutputError("output= is for ONNX models; write a transformed torch module with export_onnx.")
    if adapter_inputs:
        raise ModelError("adapter_inputs= is for ONNX models; a torch module loads adapters with load_adapter.")
    from laurel_graph.passes.rewrite.fx import insert as insert_fx
    from laurel_graph.torch_residual.module import freeze_base

    captured, detection = _capture_and_detect(model, args, kwargs, dynamic_shapes)
    selection = select(detection, config)
    module = _copy_sharing_weights(captured)
    base = sum(parameter.numel() for parameter in module.parameters())
    insert_fx(module, selection.plans, config)
    freeze_base(module)
    return TransformResult(module, TransformReport(detection, selection.plans, selection.skipped, base))


def remove(model: str | Path | onnx.ModelProto | fx.GraphModule, output: str | Path | None = None) -> Any:
    """Gives the original graph back, exactly as it was before :func:`transform`.

    Args:
        model: a transformed ``.onnx`` path, ``ModelProto`` or ``GraphModule``.
        output: where to write the original ONNX file.

    Returns:
        The path written, a new ``ModelProto``, or the same ``GraphModule``.

    Raises:
        ModelError: the model was not transformed by laurel-graph, or cannot be read.
        OutputError: *output* cannot be written, or is the input.
    """
    if not _is_onnx(model):
        from laurel_graph.passes.rewrite.fx import remove as remove_fx

        return remove_fx(cast("fx.GraphModule", model))
    from laurel_graph import soundness
    from laurel_graph.outputs.models import write_model
    from laurel_graph.passes.rewrite.onnx import remove as remove_onnx

    proto, _, source = _read_to_change(model, output)
    remove_onnx(proto)
    soundness.check(proto)  # the record of what was there comes from the file
    if output is None:
        return proto
    return write_model(proto, output, source)


def _capture_and_detect(
    model: Any, args: Any, kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
) -> tuple[fx.GraphModule, Detection]:
    """Returns the graph of a torch model and the verdict on every add of it."""
    from torch import nn

    from laurel_graph.passes.detect.rule import detect
    from laurel_graph.passes.read_fx.capture import capture
    from laurel_graph.passes.read_fx.prepare import example_inputs

    if isinstance(model, nn.Module):
        args, kwargs = example_inputs(model, args, kwargs)
    captured = capture(model, _as_tuple(args), kwargs, dynamic_shapes)
    found = detect(captured.view)
    if not found.residuals and captured.symbolic and (args or kwargs):
        try:
            other = capture(model, _as_tuple(args), kwargs, dynamic_shapes, symbolic=False)
        except ModelError:  # the first answer stands
            other = captured
        if (second := detect(other.view)).residuals:
            captured, found = other, second
    return captured.module, replace(found, model=type(model).__name__, notes=(*captured.notes, *found.notes))


def _copy_sharing_weights(module: fx.GraphModule) -> fx.GraphModule:
    """Returns a copy whose parameters are objects of their own on the same memory, and whose buffers are copies."""
    from torch import nn

    weights = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in module.parameters()}
    return deepcopy(module, weights)


def _is_onnx(model: object) -> TypeGuard[str | Path | onnx.ModelProto]:
    """Tells ONNX input by type, without importing onnx for torch models."""
    return isinstance(model, (str, Path)) or type(model).__name__ == "ModelProto"


def _read(model: Any) -> tuple[onnx.ModelProto, str]:
    from laurel_graph import soundness
    from laurel_graph.onnx_model import file as onnx_file

    if isinstance(model, (str, Path)):
        return onnx_file.read(model), str(model)
    soundness.check(model)
    return model, model.graph.name or "ModelProto"


def _read_to_change(model: Any, output: str | Path | None) -> tuple[onnx.ModelProto, str, Path | None]:
    """Returns a model of our own, its name and the file it came from, after checking that *output* can be written."""
    from laurel_graph.outputs import check_outputs
    from laurel_graph.outputs.models import model_files

    source = Path(model) if isinstance(model, (str, Path)) else None
    proto, name = _read(model)
    check_outputs(output, inputs=() if source is None else model_files(source, proto))
    return (proto if source is not None else deepcopy(proto)), name, source


def _as_tuple(args: Any) -> tuple[Any, ...]:
    return tuple(args) if isinstance(args, (tuple, list)) else (args,)
