"""What is installed here, whether the fused kernels run, and what is missing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import laurel_graph
from laurel_graph.tools.dependencies import install_line, package_of, requirements

if TYPE_CHECKING:
    from laurel_graph.model_folder import Layout

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "networkx", "numpy", "safetensors")
EXTRAS = ("finetune", "report")


def examine() -> dict[str, dict[str, Any]]:
    """Returns what ``laurel doctor`` prints: section to name to value."""
    return {
        "versions": {"laurel-graph": _own_version(), "python": platform.python_version()}
        | {name: _version(name) for name in PACKAGES},
        "machine": {
            "platform": platform.platform(),
            "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        },
        "kernels": _kernels(),
        "extras": {extra: _extra(extra) for extra in EXTRAS},
    }


def examine_model(model: str | Path) -> dict[str, Any]:
    """Returns what runs a model folder or file here: name to value.

    Raises:
        ModelError: it cannot be read, its graph cannot be told, or ONNX Runtime cannot load it.
    """
    from laurel_graph import onnx_file, runtime
    from laurel_graph.model_folder import graph_path, is_folder, layout_of
    from laurel_graph.opset.recover import is_deployed
    from laurel_graph.opset.schema import read_specs
    from laurel_graph.outputs.models import model_files

    graph = graph_path(model)
    proto = onnx_file.read(graph)
    found: dict[str, Any] = {"graph": str(graph)}
    weights = model_files(graph, proto)[1:]
    found["weights"] = ", ".join(f"{path.name} ({path.stat().st_size:,} bytes)" for path in weights) or "in the graph"
    operators = runtime.used_operators(graph)
    deployed = is_deployed(proto)
    sites = len(read_specs(proto)) if not deployed else 0
    found["LAuReL"] = "deployed" if deployed else f"{sites} sites, trainable" if sites else "none"
    found["operators of ours"] = ", ".join(operators) or "none: any ONNX Runtime runs it"
    if operators:
        found["library here"] = str(runtime.library_path() or "missing")
    if is_folder(model):
        layout = layout_of(model)
        found = {"folder": layout.kind, **found}
        if layout.others:
            found["other graphs"] = ", ".join(path.name for path in layout.others)
        if layout.kind == "genai":
            found |= {"GenAI": _version("onnxruntime-genai"), **_genai_library(layout, bool(operators))}
    runtime.session(graph, threads=1)
    found["ONNX Runtime"] = "loads it"
    return found


def _genai_library(layout: Layout, needed: bool) -> dict[str, str]:
    """What GenAI will load beside the graph."""
    from laurel_graph.model_folder.layout import session_options
    from laurel_graph.model_folder.rewrite import LIBRARY, is_ours

    name = session_options(layout.config).get(LIBRARY)
    if not name:
        bodies = "none: it runs from function bodies, slower; write the folder anew where the library is"
        return {"GenAI loads": bodies if needed else "the graph alone"}
    place = layout.folder / str(name)
    if not place.is_file():
        return {"GenAI loads": f"{name}, which is not there: GenAI will refuse the folder"}
    digest = " (ours, as installed here)" if is_ours(str(name)) and _is_installed(place) else ""
    return {"GenAI loads": f"{name}{digest}" if needed or not is_ours(str(name)) else f"{name}, which nothing needs"}


def _is_installed(library: Path) -> bool:
    import filecmp

    from laurel_graph import runtime

    own = runtime.library_path()
    return own is not None and filecmp.cmp(own, library, shallow=False)


def _own_version() -> str:
    version = laurel_graph.__version__
    if version != laurel_graph.UNKNOWN_VERSION:
        return version
    folder = Path(laurel_graph.__file__).parents[1]
    return f"not installed: it runs from {folder}; `pip install .` there installs it"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _extra(extra: str) -> str:
    """Returns "installed", or what is missing and how to install it."""
    missing = [name for line in requirements().get(extra, ()) if _version(name := package_of(line)) == "missing"]
    return f"missing {', '.join(missing)}; {install_line(*missing)}" if missing else "installed"


def _kernels() -> dict[str, Any]:
    """Tells whether a file with ``ai.laurel`` nodes runs on the fused kernels or on the function bodies here."""
    import onnxruntime

    from laurel_graph import runtime

    found: dict[str, Any] = {"providers": ", ".join(onnxruntime.get_available_providers())}
    path = runtime.library_path()
    found["library"] = str(path) if path else "missing: no C++ compiler when laurel-graph was installed"
    found["in use"] = f"fused kernels ({runtime.isa()})" if runners() else "function bodies"
    return found


def runners() -> bool:
    """Returns whether a one-node model runs on the fused kernel: tried, not guessed."""
    import numpy as np
    import onnx
    from onnx import helper

    from laurel_graph import runtime
    from laurel_graph.opset.schema import DOMAIN, VERSION

    if runtime.library_path() is None:
        return False
    shape = {name: [2, 4] for name in ("x", "f", "y")} | {name: [] for name in ("alpha", "beta")}
    values = {n: helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, dims) for n, dims in shape.items()}
    node = helper.make_node("Laurel_RW", ["x", "f", "alpha", "beta"], ["y"], domain=DOMAIN)
    graph = helper.make_graph([node], "probe", [values[n] for n in ("x", "f", "alpha", "beta")], [values["y"]])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    try:  # without a function body this loads on the kernel alone
        options = runtime.session_options(operators=["Laurel_RW"])
        session = onnxruntime_session(model, options)
        x = np.ones((2, 4), np.float32)
        (y,) = session.run(None, {"x": x, "f": x, "alpha": np.array(1, np.float32), "beta": np.array(2, np.float32)})
    except Exception:  # ORT's own exception classes: whatever the reason, the kernel does not run
        return False
    return bool((y == 3).all())


def onnxruntime_session(model: Any, options: Any) -> Any:
    """Returns an ORT session on the CPU for a model in memory."""
    import onnxruntime

    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
