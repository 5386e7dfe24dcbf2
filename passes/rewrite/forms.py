"""``lg.inline`` and ``lg.outline``: a transformed model in plain nodes, and in nodes of ``ai.laurel`` again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from laurel_graph.model_folder import rewritten, writes_folder
from laurel_graph.passes.base import Pipeline
from laurel_graph.passes.pipeline import run_on_onnx

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs


def inline(model: str | Path | onnx.ModelProto | gs.Graph, output: str | Path | None = None) -> Any:
    """Puts plain ``ai.onnx`` nodes in the place of every node of ``ai.laurel``, for runtimes that know no functions.

    The file computes the same and stays one that can be trained: every command and function here takes it as it takes
    the other form, and writes the form that it read (:mod:`laurel_graph.opset.plain`). On ONNX Runtime the other form
    is faster with the kernels.

    Args:
        model: a transformed or deployed ``.onnx`` path or folder, ``ModelProto`` or ``gs.Graph``.
        output: where to write the file, or the folder.

    Returns:
        The path written, or a new ``ModelProto`` or ``gs.Graph``.

    Raises:
        ModelError: there is no node of ``ai.laurel`` in the model, or it cannot be read.
        OutputError: *output* cannot be written, or is the input.
    """
    from laurel_graph.passes.standard.changing import Inline

    return _run(Inline(), model, output, portable=True)


def outline(model: str | Path | onnx.ModelProto | gs.Graph, output: str | Path | None = None) -> Any:
    """Puts the nodes of ``ai.laurel`` back that :func:`inline` wrote out; the inverse.

    Args:
        model: a model in plain form; as for :func:`inline`.
        output: where to write the file, or the folder.

    Returns:
        As for :func:`inline`.

    Raises:
        ModelError: nothing of the model is written out, or what stands at a site is not what was written there.
        OutputError: *output* cannot be written, or is the input.
    """
    from laurel_graph.passes.standard.changing import Outline

    return _run(Outline(), model, output, portable=False)


def _run(each: Any, model: Any, output: str | Path | None, *, portable: bool) -> Any:
    if writes_folder(model, output):
        with rewritten(model, cast("str | Path", output), portable=portable) as new:
            _run(each, new.source, new.graph, portable=portable)
        return new.output
    return run_on_onnx(Pipeline((each,)), model, output)[1]
