"""``lg.inspect``, ``lg.transform`` and ``lg.remove``: the pipelines of :mod:`.recipes` on files, models and modules."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard, cast

from laurel_graph.config import LaurelConfig
from laurel_graph.detection import Detection
from laurel_graph.errors import ModelError, OutputError, check_order
from laurel_graph.model_folder import folder_files, graph_path, rewritten, writes_folder

from .base import TORCH, Facts, PassResult, Pipeline
from .facts import Source
from .graphsurgeon import is_graph, origin_folder
from .recipes import placing, removing, transforming
from .results import TransformReport, TransformResult
from .select import Selection

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs
    from torch import fx, nn
    from torch.export import ExportedProgram

    from laurel_graph.passes.read_fx.capture import Captured

    Model: TypeAlias = str | Path | onnx.ModelProto | gs.Graph | nn.Module | ExportedProgram


def inspect(
    model: Model, args: Any = (), kwargs: Mapping[str, Any] | None = None, dynamic_shapes: Any = None
) -> Detection:
    """Finds every residual connection of *model* and changes nothing.

    Args:
        model: an ``.onnx`` path, a model folder, a ``ModelProto``, a ``gs.Graph`` of onnx-graphsurgeon, an
            ``nn.Module``, a ``GraphModule`` or an ``ExportedProgram``.
        args: example inputs of a torch module: one tensor or a tuple of positional inputs.
        kwargs: example keyword inputs of a torch module.
        dynamic_shapes: as for ``torch.export.export``, where a torch module has to be captured by it.

    Returns:
        The verdict on every add.

    Raises:
        ModelError: the model cannot be read or traced.
    """
    if _is_onnx(model):
        from laurel_graph.passes.rewrite.placing import detect_onnx

        proto, name = _read(model, to_look=True)
        return replace(detect_onnx(proto), model=name)
    return _capture_and_detect(model, args, kwargs, dynamic_shapes)[1]


def transform(
    model: Model,
    config: LaurelConfig | str | Mapping[str, Any] | None = None,
    args: Any = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    output: str | Path | None = None,
    adapter_inputs: bool = False,
    run: bool = True,
    keep_fused: bool = False,
    portable: bool = False,
) -> TransformResult:
    """Replaces the residual connections of *model* by LAuReL residuals that compute the same bits at the start.

    What is passed in stays as it is: a torch module is traced and its copy frozen but for the new parameters, sharing
    the memory of the weights (not of buffers, which batch norms write); an ONNX file is read and never written.

    Args:
        model: as for :func:`inspect`.
        config: what to put in: a :class:`LaurelConfig`, its fields as a mapping, or a variant; by default
            ``LaurelConfig()``.
        args: example inputs of a torch module.
        kwargs: example keyword inputs of a torch module.
        dynamic_shapes: as for ``torch.export.export``: the axes of the inputs that stay open, where a torch module
            cannot be traced symbolically and is captured for its example inputs.
        output: where to write the transformed ONNX file; for a folder, the folder to make
            (:mod:`laurel_graph.model_folder`). A model of memory whose weights lie in files is written where their
            folder is known: a ``gs.Graph`` of ``to_graph(model, folder)`` knows it.
        adapter_inputs: make the LAuReL tensors of an ONNX graph overridable inputs, so that ORT can switch adapters
            per request.
        run: run an ONNX model on one drawn sample before and after, in memory or as the file that is about to become
            visible: what is put in fits the values that were seen, and the result runs, with the fused kernels and
            without, and computes what the model computed. It costs three sessions; ``False`` is for models that are
            too large for it.
        keep_fused: leave sites of an ONNX model alone whose add is hidden in an operator (SkipLayerNormalization,
            FusedConv, Gemm), which would come apart and start a rounding away from the original.
        portable: leave plain ``ai.onnx`` nodes in an ONNX model, for runtimes that know no functions; see
            :func:`laurel_graph.inline`.

    Raises:
        ModelError: the model cannot be read or traced.
        VerificationError: the rewritten model does not run, or computes something else; nothing is written.
        NoResidualError: nothing to rewrite was found; lists the nearest misses.
        SelectorError: a site selector matched nothing.
        ConfigError: a rank does not fit a site, or *config* is something else.
        OutputError: *output* cannot be written, or is the input.
    """
    check_order("transform(model, config, ...)", model, config, ("model", "config"))
    config = LaurelConfig.of(config)
    if writes_folder(model, output):
        with rewritten(cast("str | Path", model), cast("str | Path", output), portable=portable) as new:
            made_file = transform(
                new.source,
                config,
                output=new.graph,
                adapter_inputs=adapter_inputs,
                run=run,
                keep_fused=keep_fused,
                portable=portable,
            )
        report = made_file.report
        detection = replace(report.detection, model=str(model))
        return TransformResult(new.output, replace(report, detection=detection, notes=(*report.notes, *new.notes)))
    if _is_onnx(model):
        if isinstance(args, (str, Path)):
            raise OutputError(f"the file to write is output=: lg.transform(model, config, output={str(args)!r}).")
        result, made = run_on_onnx(placing(config, adapter_inputs, run, keep_fused, portable), model, output)
        return TransformResult(made, _report(result))
    if output is not None:
        raise OutputError("output= is for ONNX models; write a transformed torch module with export_onnx.")
    if adapter_inputs:
        raise ModelError("adapter_inputs= is for ONNX models; a torch module loads adapters with load_adapter.")
    if portable:
        raise ModelError("portable= is for ONNX models; write a torch module so with export_onnx(..., portable=True).")
    captured, detection = _capture_and_detect(model, args, kwargs, dynamic_shapes)
    result = transforming(config).run(_copy_sharing_weights(captured), Facts(detection))
    return TransformResult(result.graph, _report(result))


def run_on_module(
    pipeline: Pipeline,
    model: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
    output: str | Path,
    inputs: Sequence[str | Path] = (),
) -> PassResult:
    """Traces a torch module, runs *pipeline* on a copy of the graph and writes the ONNX file that comes out.

    Where no pass exports, ``export`` runs before the first one that takes ONNX graphs alone, or last.

    Args:
        pipeline: what to do.
        model: the module; it stays as it is.
        args: example inputs.
        kwargs: example inputs by name.
        dynamic_shapes: as for ``torch.export.export``.
        output: where the result goes.
        inputs: files that are read.

    Raises:
        LaurelError: what the passes raise.
    """
    from laurel_graph.outputs import staged

    from .facts import Example
    from .files import write_result
    from .standard.changing import Export

    captured, detection = _capture_and_detect(model, args, kwargs, dynamic_shapes)
    if not any(isinstance(each, Export) for each in pipeline.passes):
        place = next((i for i, each in enumerate(pipeline.passes) if TORCH not in each.takes), len(pipeline.passes))
        pipeline = replace(pipeline, passes=(*pipeline.passes[:place], Export(), *pipeline.passes[place:]))
    facts = Facts(detection, Example(args, dict(kwargs or {}), dynamic_shapes), Source(name=type(model).__name__))
    module = _copy_sharing_weights(captured)
    return write_result(pipeline, module, staged(output, inputs), None, facts, spill=False)


def _report(result: PassResult) -> TransformReport:
    detection, selection = result.found(Detection), result.found(Selection)
    if detection is None or selection is None:
        raise TypeError("a transformation detects and selects")
    base = result.report.counters["insert.base_parameters"]
    return TransformReport(detection, selection.plans, selection.skipped, base, result.report.notes)


def run_on_onnx(pipeline: Pipeline, model: Any, output: str | Path | None) -> tuple[PassResult, Any]:
    """Runs a pipeline on an ONNX file or model, which stays as it is, and writes what comes out where *output* says.

    Returns:
        The result, and what a caller gets: the path written, or a model of the kind that was given.
    """
    if isinstance(model, (str, Path)) and output is not None:
        from .files import run_on_file

        return run_on_file(pipeline, model, output, spill=False), Path(output)
    from laurel_graph.opset.plain import is_plain, write_out

    proto, name, source, folder = _read_to_change(model, output)
    result = pipeline.run(proto, Facts(Source(source, folder, name)))
    if output is not None:
        from laurel_graph.outputs.models import write_model

        write_model(result.graph, output, folder=folder)
        return result, Path(output)
    if is_plain(result.graph):
        write_out(result.graph)
    if is_graph(model):
        from .graphsurgeon.convert import to_graph

        return result, to_graph(result.graph, folder or "")
    return result, result.graph


def remove(model: str | Path | onnx.ModelProto | gs.Graph | fx.GraphModule, output: str | Path | None = None) -> Any:
    """Gives the original graph back, exactly as it was before :func:`transform`.

    Where the rest of an ONNX model was changed since, a warning says what of it is not as it was.

    Args:
        model: a transformed ``.onnx`` path or folder, ``ModelProto``, ``gs.Graph`` or ``GraphModule``.
        output: where to write the original ONNX file, or the folder.

    Returns:
        The path written, a new ``ModelProto`` or ``gs.Graph``, or the same ``GraphModule``.

    Raises:
        ModelError: the model was not transformed by laurel-graph, cannot be read, or the original cannot be told.
        OutputError: *output* cannot be written, or is the input.
    """
    if not _is_onnx(model):
        from torch import fx, nn

        if isinstance(model, nn.Module) and not isinstance(model, fx.GraphModule):
            raise ModelError(f"a live {type(model).__name__} gives LAuReL back by lg.detach(model), not by remove.")
        return removing().run(cast("fx.GraphModule", model)).graph
    if writes_folder(model, output):
        with rewritten(cast("str | Path", model), cast("str | Path", output)) as new:
            remove(new.source, new.graph)
        return new.output
    result, made = run_on_onnx(removing(), model, output)
    for line in result.report.notes:
        warnings.warn(line, stacklevel=2)
    return made


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
    found = _detected_before(captured) or detect(captured.view)
    if not found.residuals and captured.symbolic and (args or kwargs):
        try:
            other = capture(model, _as_tuple(args), kwargs, dynamic_shapes, symbolic=False)
        except ModelError:  # the first answer stands
            other = captured
        if (second := detect(other.view)).residuals:
            captured, found = other, second
    return captured.module, replace(found, model=type(model).__name__, notes=(*captured.notes, *found.notes))


def _detected_before(captured: Captured) -> Detection | None:
    """The verdicts on a graph as it was before sites of it were rewritten; ``None`` if none were, or it was changed."""
    from laurel_graph.passes.detect.rule import detect
    from laurel_graph.passes.read_fx.view import fx_view
    from laurel_graph.passes.rewrite.fx import remove as remove_fx
    from laurel_graph.torch_residual.module import laurel_modules

    specs = {layer.spec.site: layer.spec for layer in laurel_modules(captured.module).values()}
    if not specs:
        return None
    try:
        before = remove_fx(_copy_sharing_weights(captured.module))
    except ModelError:  # its residuals came otherwise, or the graph was edited since
        return None
    found = detect(fx_view(before, captured.view.model))
    if not set(specs) <= {residual.site for residual in found.residuals}:
        return None
    residuals = tuple(
        replace(residual, kind="laurel", rank=specs[residual.site].rank) if residual.site in specs else residual
        for residual in found.residuals
    )
    return replace(found, residuals=residuals)


def _copy_sharing_weights(module: fx.GraphModule) -> fx.GraphModule:
    """Returns a copy whose parameters are objects of their own on the same memory, and whose buffers are copies."""
    from torch import nn

    weights = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in module.parameters()}
    return deepcopy(module, weights)


def _is_onnx(model: object) -> TypeGuard[str | Path | onnx.ModelProto | gs.Graph]:
    """Tells ONNX input by type, without importing onnx for torch models."""
    return isinstance(model, (str, Path)) or type(model).__name__ == "ModelProto" or is_graph(model)


def _read(model: Any, to_look: bool = False) -> tuple[onnx.ModelProto, str]:
    from laurel_graph import onnx_file, soundness
    from laurel_graph.opset.plain import with_nodes_put_back

    if isinstance(model, (str, Path)):
        return onnx_file.read_with_records(graph_path(model), to_look=to_look), str(model)
    if is_graph(model):
        from .graphsurgeon.convert import to_model

        return with_nodes_put_back(to_model(model)), model.name
    soundness.check(model)
    return with_nodes_put_back(model), model.graph.name or "ModelProto"


def _read_to_change(model: Any, output: str | Path | None) -> tuple[onnx.ModelProto, str, Path | None, Path | None]:
    """Returns a model of our own, its name, the file it came from and the folder of its weight files.

    *output* is checked before any work is done.

    Raises:
        ModelError: the model is to be written, and nobody knows in which folder its weights lie.
        OutputError: *output* cannot be written, or is the input.
    """
    from laurel_graph.onnx_model.weight_file import check_weights_known
    from laurel_graph.outputs import check_outputs
    from laurel_graph.outputs.kinds import MODEL
    from laurel_graph.outputs.models import weight_files

    from .files import check_not_itself

    source = graph_path(model) if isinstance(model, (str, Path)) else None
    proto, name = _read(model)
    folder = source.parent if source is not None else Path(known) if (known := origin_folder(model)) else None
    if output is not None:
        check_weights_known(proto, folder or "")
        if source is None:
            check_not_itself(output, proto, model)
    weights = () if folder is None else weight_files(proto, folder)
    check_outputs(output, inputs=(source, *weights, *folder_files(model)), kind=MODEL)
    return (deepcopy(proto) if proto is model else proto), name, source, folder


def _as_tuple(args: Any) -> tuple[Any, ...]:
    return tuple(args) if isinstance(args, (tuple, list)) else (args,)
