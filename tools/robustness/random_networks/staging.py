"""One random network, transformed at once, in stages, in any order, and twice: it must be the same network.

So it must be when it is written out in plain nodes and put back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from laurel_graph.config import LaurelConfig
from laurel_graph.errors import LaurelError, NoResidualError
from laurel_graph.onnx_model.walk import graphs_of
from laurel_graph.opset.schema import DOMAIN, read_specs
from laurel_graph.passes.pipeline import remove, transform
from laurel_graph.passes.rewrite.forms import inline, outline

from .generate import Case
from .trained import train


def differences(case: Case) -> str:
    """Returns the first difference between the ways to transform a network, "" if there is none.

    Every second network is looked at as ONNX Runtime optimises it, with adds hidden in its operators.

    Raises:
        LaurelError: it cannot be transformed at all.
    """
    hides = case.seed % 2 and case.kind == "float32" and not case.model.graph.sparse_initializer
    model = _optimised(case.model) if hides else case.model
    once = transform(model, case.config, run=False)
    sites = [plan.spec.site for plan in once.report.plans]
    if found := _repeated(once.model, case.config):
        return found
    for stages in _stages(sites, case.rng):
        staged = model
        try:
            for part in stages:
                staged = transform(staged, replace(case.config, sites=tuple(part)), run=False).model
        except LaurelError as error:
            return f"in stages {stages}: {type(error).__name__}: {error}"
        if found := _difference(once.model, staged):
            return f"in stages {stages}: {found}"
        if found := _repeated(staged, case.config):
            return f"in stages {stages}: {found}"
        if remove(staged).SerializeToString() != model.SerializeToString():
            return f"in stages {stages}: removal gives another model than there was"
    return ""


def form_differences(case: Case) -> str:
    """Returns how a trained network and its plain form differ, "" if they do not, in any bit.

    Raises:
        LaurelError: it cannot be transformed at all, or not be written out.
    """
    trained = transform(case.model, case.config, run=False).model
    train(trained, case.rng)
    written = inline(trained)
    if any(node.domain == DOMAIN for graph in graphs_of(written.graph) for node in graph.node):
        return "nodes of ai.laurel are left"
    if found := _difference(trained, outline(written)):
        return f"put back: {found}"
    if outline(written).SerializeToString() != trained.SerializeToString():
        return "put back: metadata or order are others"
    if remove(written).SerializeToString() != case.model.SerializeToString():
        return "removal gives another model than there was"
    names = [value.name for value in trained.graph.output]
    for feeds in case.feeds:
        if (wanted := _run(trained, feeds)) is None:  # ONNX Runtime adds no bfloat16
            break
        for name, mine, theirs in zip(names, _run(written, feeds) or (), wanted, strict=True):
            if np.asarray(mine).tobytes() != np.asarray(theirs).tobytes():
                return f"output {name!r} has other bits"
    return ""


def _run(model: onnx.ModelProto, feeds: Any) -> list[Any] | None:
    """Runs a model by its bodies, not optimised; ``None`` where a node has no kernel."""
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except NoKernel:
        return None
    return list(session.run(None, dict(feeds)))


def _stages(sites: Sequence[str], rng: Any) -> list[list[list[str]]]:
    """Ways to do it: the sites one by one from the front, from the back, and in two random halves."""
    if len(sites) < 2:
        return []
    order = [sites[i] for i in rng.permutation(len(sites))]
    cut = int(rng.integers(1, len(sites)))
    return [[[site] for site in sites], [[site] for site in reversed(sites)], [order[:cut], order[cut:]]]


def _repeated(model: onnx.ModelProto, config: LaurelConfig) -> str:
    """What a second call with the same config adds, "" if it finds that nothing is left."""
    try:
        again = transform(model, config, run=False)
    except NoResidualError:
        return ""
    return f"a second call adds {[plan.spec.site for plan in again.report.plans]}"


def _difference(one: onnx.ModelProto, other: onnx.ModelProto) -> str:
    for what, of in (("nodes", _nodes), ("tensors", _tensors), ("sites", read_specs), ("functions", _functions)):
        a, b = of(one), of(other)
        if a != b:
            names = sorted(name for name in {*a, *b} if a.get(name) != b.get(name))
            return f"{what} {names[:3]} are others: {[str(a.get(name))[:300] for name in names[:1]]} at once, " \
                f"{[str(b.get(name))[:300] for name in names[:1]]} in stages"  # fmt: skip
    return ""


def _nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {",".join(node.output): node for node in model.graph.node}


def _tensors(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _functions(model: onnx.ModelProto) -> dict[str, onnx.FunctionProto]:
    return {function.name: function for function in model.functions}


def _optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as ONNX Runtime writes it at its extended level."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "optimised.onnx"))
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)
