"""Our passes as one of ``onnx_ir.passes``, for its PassManager and for tools that are built on it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir import external_data, serde
from onnx_ir.passes import FunctionalPass
from onnx_ir.passes import PassResult as IrResult

from laurel_graph.passes.base import NO_FACTS, Facts, Pass, PassResult, Pipeline
from laurel_graph.passes.facts import Source


class IrPass(FunctionalPass):
    """Runs our passes on an ``onnx_ir.Model`` and returns a new one::

        ir.passes.Sequential(IrPass(Insert(LaurelConfig("rw")), Fold(), Fuse()), other_pass)(model)

    Invariants are checked. What one of the passes finds out, the next ones of the same IrPass know.

    Args:
        passes: passes that take a ``ModelProto``.
        facts: what they need to know, such as the ``Reference`` that ``verify`` compares with.

    Attributes:
        result: what the last run returned, with its report; ``None`` before.
    """

    def __init__(self, *passes: Pass, facts: Facts = NO_FACTS) -> None:
        self.pipeline, self.facts = Pipeline(passes, check=True), facts
        self.result: PassResult | None = None

    def call(self, model: ir.Model) -> IrResult:
        """Runs the passes on a copy.

        Raises:
            LaurelError: what they raise.
        """
        folder = _weight_folder(model)
        source = Source(folder=None if folder is None else Path(folder), name=model.graph.name or "")
        self.result = self.pipeline.run(serde.serialize_model(model), Facts(source).plus(self.facts))
        made = serde.deserialize_model(self.result.graph)
        if folder is not None:
            external_data.set_base_dir(made.graph, folder)
        return IrResult(made, self.result.changed)


def _weight_folder(model: ir.Model) -> str | None:
    """Returns the folder of weights in other files, ``None`` where there are none."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return next((str(tensor.base_dir) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)), None)
