"""Our passes as one of ``torch.fx.passes.infra``, for its PassManager and whatever else runs those."""

from __future__ import annotations

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase
from torch.fx.passes.infra.pass_base import PassResult as FxResult

from laurel_graph.passes.base import NO_FACTS, Facts, Pass, PassResult, Pipeline


class FxPass(PassBase):
    """Runs our passes on a ``GraphModule``, in place::

        PassManager([FxPass(Insert(LaurelConfig("rw"))), other_pass])(module)

    Invariants are checked, as PassManager checks those of all its passes. What one of the passes finds out, the next
    ones of the same FxPass know.

    Args:
        passes: passes that take a ``GraphModule``.
        facts: what they need to know, such as ``Example`` inputs for shapes.

    Attributes:
        result: what the last run returned, with its report; ``None`` before.
    """

    def __init__(self, *passes: Pass, facts: Facts = NO_FACTS) -> None:
        self.pipeline, self.facts = Pipeline(passes, check=True), facts
        self.result: PassResult | None = None

    def call(self, graph_module: fx.GraphModule) -> FxResult:
        """Runs the passes.

        Raises:
            LaurelError: what they raise.
        """
        self.result = self.pipeline.run(graph_module, self.facts)
        return FxResult(self.result.graph, self.result.changed)
