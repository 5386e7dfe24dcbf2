"""Our passes as one of Olive, for its workflows; ``olive-ai`` has to be installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.passes.olive_pass import Pass as OlivePass
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.pass_config import PassConfigParam

from laurel_graph.errors import ConfigError
from laurel_graph.passes.base import Pass, PassResult, Pipeline
from laurel_graph.passes.files import run_on_file
from laurel_graph.passes.registry import parse_pass


class LaurelPass(OlivePass):  # type: ignore[misc]
    """Runs our passes on an ONNX model of a workflow, in whose configuration it stands as::

        {"type": "LaurelPass", "passes": ["insert:variant=rw+lr,rank=8", "fold", "fuse", "verify"]}

    Invariants are checked. What one of the passes finds out, the next ones of the same LaurelPass know.

    Attributes:
        result: what the last run returned, with its report; ``None`` before.
    """

    result: PassResult | None = None
    _passes: tuple[Pass, ...] | None = None

    @classmethod
    def of(cls, *passes: Pass) -> Any:
        """Returns an Olive pass that runs pass objects: ``LaurelPass.of(Insert(), Fold()).run(model, "out.onnx")``."""
        made = create_pass_from_dict(cls, {"passes": [each.name for each in passes]}, disable_search=True)
        made._passes = passes
        return made

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, Any]:
        text = "what to run, as --pass takes it: name:option=value,option=value or module:attribute"
        return {"passes": PassConfigParam(type_=list[str], required=True, description=text)}

    def _run_for_config(self, model: Any, config: Any, output_model_path: str) -> Any:
        if not isinstance(model, ONNXModelHandler):
            raise ConfigError(f"LaurelPass takes an ONNX model, found a {type(model).__name__}: convert it first.")
        output = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        output.parent.mkdir(parents=True, exist_ok=True)
        passes = tuple(map(parse_pass, config.passes)) if self._passes is None else self._passes
        self.result = run_on_file(Pipeline(passes, check=True), model.model_path, output)
        return ONNXModelHandler(output.parent, output.name, inference_settings=model.inference_settings)
