"""The three ways through the house, as pipelines: what ``lg.transform``, ``lg.deploy`` and ``lg.remove`` run.

transform   place, insert, with ``portable`` inline, try; of a torch module detect, select, insert
deploy      fold, fuse, mark, and verify where a file is written
remove      remove
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from laurel_graph.config import LaurelConfig

from .base import Pass, Pipeline

if TYPE_CHECKING:
    from .deploy.costs import CostModel


def transforming(config: LaurelConfig) -> Pipeline:
    """Returns what :func:`laurel_graph.transform` runs on a torch module."""
    from .standard.changing import Insert
    from .standard.finding import Detect, Select

    return Pipeline((Detect(), Select(config), Insert()))


def placing(
    config: LaurelConfig, adapter_inputs: bool, run: bool, keep_fused: bool, portable: bool = False
) -> Pipeline:
    """Returns what :func:`laurel_graph.transform` runs on an ONNX model; its options are that function's."""
    from .standard.changing import Inline, Insert
    from .standard.placing import Place, Try

    passes: tuple[Pass, ...] = (Place(config, run, keep_fused), Insert(adapter_inputs=adapter_inputs))
    passes += (Inline(),) * portable + (Try(),) * run
    return Pipeline(passes)


def deploying(
    *,
    portable: bool = False,
    target: str = "cpu",
    costs: CostModel | None = None,
    compare: Pass | None = None,
    rescale: str = "all",
    opset: int = 0,
) -> Pipeline:
    """Returns what :func:`laurel_graph.deploy` runs; *compare* is its last pass, ``Verify`` where a file is written.

    *rescale* is the option of ``Fold``, *opset* that of ``RaiseOpset``.
    """
    from .standard.serving import Fold, Fuse, Mark, RaiseOpset

    raising = (RaiseOpset(opset),) if opset else ()
    passes = (Fold(rescale), Fuse(portable, costs), *raising, Mark(portable, target))
    return Pipeline(passes if compare is None else (*passes, compare))


def removing() -> Pipeline:
    """Returns what :func:`laurel_graph.remove` runs."""
    from .standard.changing import Remove

    return Pipeline((Remove(),))
