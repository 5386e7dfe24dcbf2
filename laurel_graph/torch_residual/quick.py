"""One residual in three operations of torch, where nobody trains and Python's own cost is what counts.

A model that makes one token at a time calls every residual on a few rows. This is the sum of :mod:`.sum` for that case:
float32 or float64 on the processor, features last, scalar weights, no gradients.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..config import SiteSpec
    from .module import LaurelResidual

MOST = 2**15
"""Elements of the skip up to which the calls cost more than the arithmetic; above, one pass over memory is better."""

_DTYPES = (torch.float32, torch.float64)


def quick_sum(residual: LaurelResidual, x: Tensor, f: Tensor) -> Tensor | None:
    """Returns α·f + β·(x + (xA)B), ``None`` where this is not the case that it is for.

    Args:
        residual: the residual, without earlier activations.
        x: the skip, ``(..., D)``.
        f: the branch, of x's shape.
    """
    case = residual.__dict__.get("quick_case")
    if case is None or case.spec is not residual.spec:
        case = residual.__dict__["quick_case"] = Case(residual.spec)
    if (
        not case.fits
        or type(x) is not Tensor
        or type(f) is not Tensor
        or (dtype := x.dtype) is not f.dtype
        or dtype not in _DTYPES
        or not x.is_cpu
        or x.numel() > MOST
        or torch.is_grad_enabled()
    ):
        return None
    parameters: dict[str, Any] = residual._parameters
    alpha, beta = _weights(case.weights, parameters) if case.weights else (1.0, 1.0)
    if case.has_lr:
        a = parameters["A"]
        if a.dtype is not dtype or not a.is_cpu:
            return None
        rows = x if x.dim() == 2 else x.reshape(-1, case.spec.width)
        y = torch.addmm(rows, rows.mm(a), parameters["B"], beta=beta, alpha=beta)
        return torch.add(y if y.dim() == x.dim() else y.view(x.shape), f, alpha=alpha)
    return torch.add(x if beta == 1.0 else x * beta, f, alpha=alpha)


class Case:
    """What of a spec decides, worked out once.

    Attributes:
        spec: the spec.
        fits: whether its sums can be quick.
        weights: how α and β are bounded, "" without RW.
        has_lr: whether (xA)B is added.
    """

    __slots__ = ("fits", "has_lr", "spec", "weights")

    def __init__(self, spec: SiteSpec) -> None:
        self.spec = spec
        known = {"rw", "lr"}.issuperset(spec.variant.split("+"))  # terms of a person's own have their own forward
        self.fits = known and spec.axis == -1 and not spec.per_channel
        self.weights = spec.weights if spec.has_rw else ""
        self.has_lr = spec.has_lr


def _weights(kind: str, parameters: dict[str, Any]) -> tuple[float, float]:
    """Returns α and β as :meth:`LaurelResidual.forward` has them."""
    if kind == "free":
        return parameters["alpha"].item(), parameters["beta"].item()
    first, second = parameters["w"].tolist()
    if kind == "sigmoid":
        return 2 / (1 + math.exp(-first)), 2 / (1 + math.exp(-second))
    alpha = 2 / (1 + math.exp(second - first))
    return alpha, 2 - alpha
