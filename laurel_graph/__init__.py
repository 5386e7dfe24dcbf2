"""laurel-graph: rewrite the residual connections of trained networks into LAuReL, fine-tune them, serve them.

    import laurel_graph as lg

    found = lg.inspect(model, example_inputs)  # nn.Module, GraphModule, ExportedProgram, or an .onnx path
    result = lg.transform("model.onnx", lg.LaurelConfig(variant="rw+lr"), output="model.laurel.onnx")
    module = lg.import_onnx("model.laurel.onnx")  # differentiable; only the LAuReL parameters train
    lg.deploy("tuned.onnx", "served.onnx")
    session = lg.session("served.onnx")

Public names are loaded when first used: importing this package imports neither torch nor onnx.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laurel_graph.passes.deploy.deploy import deploy_file as deploy
    from laurel_graph.passes.detect.explain import explain
    from laurel_graph.passes.live.adapters import (
        adapter_checkpoints,
        load_adapter,
        print_trainable_parameters,
        save_adapter,
        set_adapter,
    )
    from laurel_graph.passes.live.attach import attach, detach, disabled
    from laurel_graph.passes.live.merge import merge
    from laurel_graph.passes.pipeline import inspect, remove, transform
    from laurel_graph.passes.rewrite.export import export_onnx
    from laurel_graph.passes.rewrite.forms import inline, outline
    from laurel_graph.passes.verify import verify
    from laurel_graph.tools.functions import bench, compare, doctor, finetune, report, sweep

    from .adapters import apply_adapter
    from .config import LaurelConfig, SiteOverride, SiteSpec
    from .detection import Detection, Rejected, Residual
    from .errors import LaurelError
    from .importer import import_onnx
    from .runtime import library_path, session, session_options
    from .torch_residual.module import LaurelResidual, parameter_groups, trainable_parameters

    __version__: str

UNKNOWN_VERSION = "0+unknown"
"""``__version__`` of a tree that is not installed, as PEP 440 writes a version that nobody knows."""

_HOMES = {
    "LaurelConfig": "config",
    "SiteOverride": "config",
    "SiteSpec": "config",
    "LaurelError": "errors",
    "Detection": "detection",
    "Rejected": "detection",
    "Residual": "detection",
    "LaurelResidual": "torch_residual.module",
    "parameter_groups": "torch_residual.module",
    "trainable_parameters": "torch_residual.module",
    "adapter_checkpoints": "passes.live.adapters",
    "apply_adapter": "adapters",
    "attach": "passes.live.attach",
    "detach": "passes.live.attach",
    "disabled": "passes.live.attach",
    "load_adapter": "passes.live.adapters",
    "merge": "passes.live.merge",
    "print_trainable_parameters": "passes.live.adapters",
    "save_adapter": "passes.live.adapters",
    "set_adapter": "passes.live.adapters",
    "import_onnx": "importer",
    "library_path": "runtime",
    "session": "runtime",
    "session_options": "runtime",
    "deploy": "passes.deploy.deploy:deploy_file",
    "explain": "passes.detect.explain",
    "export_onnx": "passes.rewrite.export",
    "inline": "passes.rewrite.forms",
    "outline": "passes.rewrite.forms",
    "inspect": "passes.pipeline",
    "remove": "passes.pipeline",
    "transform": "passes.pipeline",
    "verify": "passes.verify",
    "bench": "tools.functions",
    "compare": "tools.functions",
    "doctor": "tools.functions",
    "finetune": "tools.functions",
    "report": "tools.functions",
    "sweep": "tools.functions",
}
"""Public name to the module that holds it, and after a colon its name there when that differs."""

__all__ = [
    "Detection",
    "LaurelConfig",
    "LaurelError",
    "LaurelResidual",
    "Rejected",
    "Residual",
    "SiteOverride",
    "SiteSpec",
    "__version__",
    "adapter_checkpoints",
    "apply_adapter",
    "attach",
    "bench",
    "compare",
    "deploy",
    "detach",
    "disabled",
    "doctor",
    "explain",
    "export_onnx",
    "finetune",
    "import_onnx",
    "inline",
    "inspect",
    "library_path",
    "load_adapter",
    "merge",
    "outline",
    "parameter_groups",
    "print_trainable_parameters",
    "remove",
    "report",
    "save_adapter",
    "session",
    "session_options",
    "set_adapter",
    "sweep",
    "trainable_parameters",
    "transform",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("laurel-graph")
        except PackageNotFoundError:  # a tree that is not installed
            return UNKNOWN_VERSION
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    home, _, inner = _HOMES[name].partition(":")
    value = getattr(import_module(f".{home}", __name__), inner or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
