"""Whole models for the conformance program: forward against ONNX Runtime, gradients against finite differences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray
    from torch import fx

FORWARD_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-3
"""Largest differences, relative to the output's and to the gradient's scale."""

TENSORS = 3
ENTRIES = 3
"""How many tensors, and how many entries of each, are compared with finite differences."""

STEPS = (1e-4, 1e-6)
"""Steps of the central differences, computed in float64: the better one counts, for kinks and tiny gradients."""


@dataclass(frozen=True)
class ModelOutcome:
    """What one model came to.

    Attributes:
        model: the file.
        status: ``passed``, ``refused`` or ``wrong``.
        forward: the largest difference from ONNX Runtime at two batch sizes, relative to the output's scale.
        gradient: the largest difference from finite differences, relative to the gradient's scale; ``None`` if not
            computed.
        second: the largest forward difference from onnx2fx, if that is installed and takes the model.
        detail: why it is refused or wrong.
    """

    model: str
    status: str
    forward: float | None = None
    gradient: float | None = None
    second: float | None = None
    detail: str = ""


def run_model(path: Path) -> ModelOutcome:
    """Imports one model and compares outputs at two batch sizes, and gradients."""
    from laurel_graph.errors import LaurelError, UnsupportedOperatorError
    from laurel_graph.importer import check, import_onnx
    from laurel_graph.onnx_file import read
    from laurel_graph.samples import sample_inputs

    name = str(path)
    try:
        model = read(path)
        module = import_onnx(path)
        worst = 0.0
        for batch in (1, 3):
            feeds = sample_inputs(model, batch=batch, seed=batch)
            report = check(module, feeds, tolerance=np.inf)
            worst = max(worst, *(d.relative for d in report))
        second = _second_oracle(model, module, feeds)
        gradient = gradient_error(path, model, feeds)
    except UnsupportedOperatorError as error:
        return ModelOutcome(name, "refused", detail=str(error))
    except LaurelError as error:
        return ModelOutcome(name, "wrong", detail=str(error))
    good = worst <= FORWARD_TOLERANCE and (gradient is None or gradient <= GRADIENT_TOLERANCE)
    detail = "" if good else f"forward {worst:.3g}, gradient {gradient}"
    return ModelOutcome(name, "passed" if good else "wrong", worst, gradient, second, detail)


def gradient_error(path: Path, model: onnx.ModelProto, feeds: dict[str, NDArray[Any]]) -> float | None:
    """Returns the largest relative difference of sampled gradients from central differences, both in float64.

    LAuReL tensors are taken if the model has any, else the last float initializers that the outputs depend on.
    """
    import torch

    from laurel_graph.importer import import_onnx

    module = import_onnx(path)
    parameters = dict(module.named_parameters())
    if not parameters:
        names = [t.name for t in model.graph.initializer if t.data_type == 1 and t.dims and 0 < np.prod(t.dims) < 1e6]
        if not names:
            return None
        module = import_onnx(path, trainable=names[-8 * TENSORS :])
        parameters = dict(module.named_parameters())
    module = module.double()
    args = [torch.from_numpy(f.astype(np.float64) if f.dtype.kind == "f" else f) for f in feeds.values()]
    loss = _loss(module, args)
    if not loss.requires_grad:
        return None
    loss.backward()
    rng = np.random.default_rng(0)
    worst, compared = 0.0, 0
    for parameter in parameters.values():
        if compared == TENSORS or parameter.grad is None or not bool(parameter.grad.any()):
            continue
        compared += 1
        flat, gradient = parameter.data.view(-1), parameter.grad.reshape(-1)
        for index in rng.choice(flat.numel(), min(ENTRIES, flat.numel()), replace=False):
            exact, scale = float(gradient[index]), float(gradient.abs().max())
            gaps = (abs(_central(module, args, flat, int(index), step) - exact) / scale for step in STEPS)
            worst = max(worst, min(gaps))
    return worst if compared else None


def _central(module: fx.GraphModule, args: list[Any], flat: Any, index: int, step: float) -> float:
    import torch

    old = float(flat[index])
    values = []
    with torch.no_grad():
        for moved in (old + step, old - step):
            flat[index] = moved
            values.append(float(_loss(module, args)))
        flat[index] = old
    return (values[0] - values[1]) / (2 * step)


def _loss(module: fx.GraphModule, args: list[Any]) -> Any:
    """Returns a number that depends on every entry of every float output, each with another weight."""
    import torch

    out = module(*args)
    parts = [o for o in (out if isinstance(out, tuple) else (out,)) if o.dtype.is_floating_point]
    return torch.stack([(o * torch.arange(1.0, o.numel() + 1).sin().reshape(o.shape)).sum() for o in parts]).sum()


def _second_oracle(model: onnx.ModelProto, module: fx.GraphModule, feeds: dict[str, NDArray[Any]]) -> float | None:
    """Returns the forward difference from onnx2fx, or ``None`` where it is absent or fails."""
    import torch

    try:
        import onnx2fx  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return None
    args = [torch.from_numpy(f) for f in feeds.values()]
    with torch.no_grad():
        try:
            theirs = onnx2fx.convert(model)(*args)
        except Exception:  # the other library's limits are not ours
            return None
        ours = module(*args)
    pairs = zip(*((o if isinstance(o, (tuple, list)) else (o,)) for o in (ours, theirs)), strict=False)
    gaps = [float((a.double() - b.double()).abs().max()) / (float(b.double().abs().max()) or 1.0) for a, b in pairs]
    return max(gaps, default=None)
