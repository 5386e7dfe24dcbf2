"""Does the tuned file compute on ONNX Runtime what the trained module computes?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from laurel_graph.errors import VerificationError
from laurel_graph.onnx_model.walk import copy_of
from laurel_graph.passes.rewrite.head import with_output
from laurel_graph.passes.verify.quantisers import rounds_activations, unrounded
from laurel_graph.passes.verify.tolerances import VERIFIED

from . import onnx_task

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import fx

    from .task import Task


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
        VerificationError: they differ by more than ten times what counts as equal.
    """
    import torch

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
    with torch.no_grad():
        result = module(*(torch.from_numpy(feeds[name]).to(device) for name in task.inputs))
    actual = task.pick(result).float().cpu().numpy()
    if mask is not None and mask.shape == actual.shape[:2]:
        actual, expected = actual[mask > 0], expected[mask > 0]
    difference = _apart(actual, expected)
    tolerance = VERIFIED.get(expected.dtype.name, VERIFIED["float16"])
    if not difference <= 10 * tolerance:
        raise VerificationError(
            f"the tuned graph on ONNX Runtime differs from the module by {difference:.3g} of the scale of {value!r}, "
            f"allowed {10 * tolerance:.3g}; nothing was written."
        )
    if difference > tolerance:
        notes.append(f"ONNX Runtime and the module differ by {difference:.2g} of scale, above {tolerance:.0e}.")
    return difference, notes


def _apart(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.abs(found - wanted.astype(np.float64)).max() / (np.abs(wanted).max() or 1.0))
