"""Does the tuned file compute on ONNX Runtime what the trained module computes?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from laurel_graph import runtime
from laurel_graph.errors import VerificationError
from laurel_graph.onnx_model.walk import copy_of
from laurel_graph.passes.rewrite.head import with_output
from laurel_graph.passes.verify.compare import MARGIN
from laurel_graph.passes.verify.probe import nudged, open_vectors
from laurel_graph.passes.verify.quantisers import rounds_activations, unrounded
from laurel_graph.passes.verify.tolerances import VERIFIED

from . import onnx_task

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import fx

    from .task import Task

_DRAWS, _ULPS = 3, 2.0
"""How often, and by how many units in the last place, the numbers of a graph are moved to see its own noise."""


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
            the last bits of the graph's own numbers move.
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

    def kept(array: NDArray[Any]) -> NDArray[Any]:
        return array[mask > 0] if mask is not None and mask.shape == array.shape[:2] else array

    actual, expected = kept(actual), kept(expected)
    difference = _apart(actual, expected)
    tolerance = VERIFIED.get(expected.dtype.name, VERIFIED["float16"])
    if difference <= tolerance:
        return difference, notes
    plain = unrounded(probe) if rounds_activations(probe) else probe
    noise = max(_apart(kept(moved), expected) for moved in _moved(plain, value, feeds, base_dir))
    allowed = max(10 * tolerance, MARGIN * noise)
    if not difference <= allowed:
        raise VerificationError(
            f"the tuned graph on ONNX Runtime differs from the module by {difference:.3g} of the scale of {value!r}, "
            f"allowed {allowed:.3g} (last bits of its own numbers move it by {noise:.2g}); nothing was written, and "
            "the checkpoint was kept."
        )
    notes.append(
        f"ONNX Runtime and the module differ by {difference:.2g} of the scale of {value!r}, where {tolerance:.0e} is "
        f"usual; last bits of the graph's own numbers move it by {noise:.2g}."
    )
    return difference, notes


def _moved(model: ModelProto, value: str, feeds: dict[str, NDArray[Any]], base_dir: Path) -> Iterator[NDArray[Any]]:
    """What *model* computes where its inputs, norms and parameters of sites are moved by their last bits."""
    opened = copy_of(model)
    vectors = open_vectors(opened, base_dir)
    session = onnx_task.make_session(opened, base_dir)
    rng = np.random.default_rng(0)
    for _ in range(_DRAWS):
        yield runtime.run(session, nudged({**vectors, **feeds}, _ULPS, rng), [value], "the tuned graph")[0]


def _apart(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.abs(found - wanted.astype(np.float64)).max() / (np.abs(wanted).max() or 1.0))
