"""Does the tuned file compute on ONNX Runtime what the trained module computes?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from laurel_graph.errors import VerificationError
from laurel_graph.onnx_model.walk import copy_of
from laurel_graph.passes.rewrite.head import with_output
from laurel_graph.passes.verify.compare import MARGIN
from laurel_graph.passes.verify.quantisers import rounds_activations, unrounded
from laurel_graph.passes.verify.tolerances import VERIFIED

from . import onnx_task

if TYPE_CHECKING:
    from onnx import ModelProto

    from .task import Task

_DRAWS, _ULPS = 3, 2.0
"""How often, and by how many units in the last place, the values in a module are moved to see its own noise."""


def compare(
    module: fx.GraphModule,
    task: Task,
    tuned: ModelProto,
    value: str,
    feeds: dict[str, NDArray[Any]],
    base_dir: Path,
    mask: NDArray[Any] | None = None,
) -> tuple[float, list[str]]:
    """Returns how far a tuned graph on ONNX Runtime is from the module, over the output's scale, and notes.

    A graph that rounds activations to 8 bits is compared without that; the notes say what it moves.

    Args:
        module: the trained module.
        task: how it runs.
        tuned: the graph.
        value: what was trained on.
        feeds: the graph's inputs.
        base_dir: where its weight files are.
        mask: ``(N, L)``, 0 at the places of a value ``(N, L, ...)`` that do not count.

    Raises:
        VerificationError: they differ by more than ten times what counts as equal, and by more than eight times what
            last bits of its values move the module.
    """
    probe = copy_of(tuned)
    with_output(probe, value)
    notes = []
    expected = onnx_task.run(probe, [value], feeds, base_dir)[0]
    if rounds_activations(probe):
        rounded, expected = expected, onnx_task.run(unrounded(probe), [value], feeds, base_dir)[0]
        moved = _apart(rounded, expected)
        notes.append(
            f"the file rounds activations to 8 bits when it runs, which moves {value!r} by {moved:.2g} of its scale; "
            "it was held against the module without."
        )
    device = next(module.parameters()).device
    given = [torch.from_numpy(feeds[name]).to(device) for name in task.inputs]

    def kept(array: NDArray[Any]) -> NDArray[Any]:
        return array[mask > 0] if mask is not None and mask.shape == array.shape[:2] else array

    def picked(result: Any) -> NDArray[Any]:
        return kept(task.pick(result).float().cpu().numpy())

    with torch.no_grad():
        actual, expected = picked(module(*given)), kept(expected)
    difference = _apart(actual, expected)
    tolerance = VERIFIED.get(expected.dtype.name, VERIFIED["float16"])
    if difference <= tolerance:
        return difference, notes
    with torch.no_grad():
        noise = max(_apart(picked(_Nudged(module, seed).run(*given)), actual) for seed in range(_DRAWS))
    allowed = max(10 * tolerance, MARGIN * noise)
    if not difference <= allowed:
        raise VerificationError(
            f"the tuned graph on ONNX Runtime differs from the module by {difference:.3g} of the scale of {value!r}, "
            f"allowed {allowed:.3g} (last bits of its values move the module by {noise:.2g}); nothing was written, and "
            "the checkpoint was kept."
        )
    notes.append(
        f"ONNX Runtime and the module differ by {difference:.2g} of the scale of {value!r}, where {tolerance:.0e} is "
        f"usual; last bits of its values move the module by {noise:.2g}."
    )
    return difference, notes


class _Nudged(fx.Interpreter):
    """Runs a module with every value in it moved by its last bits, as another order of its sums moves them."""

    def __init__(self, module: fx.GraphModule, seed: int) -> None:
        super().__init__(module)
        self._random = torch.Generator().manual_seed(seed)

    def run_node(self, n: fx.Node) -> Any:
        return fx.node.map_aggregate(super().run_node(n), self._moved)

    def _moved(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        by = torch.rand(value.shape, generator=self._random).to(value.device, value.dtype)
        return value + value * ((2 * by - 1) * (_ULPS * torch.finfo(value.dtype).eps))


def _apart(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.abs(found - wanted.astype(np.float64)).max() / (np.abs(wanted).max() or 1.0))
