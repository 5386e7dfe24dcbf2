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
    spec = residual.spec
    if (
        torch.is_grad_enabled()
        or spec.axis != -1
        or spec.per_channel
        or spec.previous
        or type(x) is not Tensor
        or type(f) is not Tensor
        or x.dtype is not f.dtype
        or x.dtype not in _DTYPES
        or x.numel() > MOST
        or not x.is_cpu
    ):
        return None
    parameters: dict[str, Any] = residual._parameters
    alpha = beta = 1.0
    if spec.has_rw:
        alpha, beta = _weights(spec.weights, parameters)
    y = x
    if spec.has_lr:
        a, b = parameters["A"], parameters["B"]
        if a.dtype is not x.dtype or not a.is_cpu:
            return None
        rows = x.reshape(-1, spec.width)
        y = torch.addmm(rows, rows.mm(a), b, beta=beta, alpha=beta).view(x.shape)
    elif beta != 1.0:
        y = x * beta
    return torch.add(y, f, alpha=alpha)


def _weights(kind: str, parameters: dict[str, Any]) -> tuple[float, float]:
    """Returns α and β as :meth:`LaurelResidual.forward` has them."""
    if kind == "free":
        return parameters["alpha"].item(), parameters["beta"].item()
    first, second = parameters["w"].tolist()
    if kind == "sigmoid":
        return 2 / (1 + math.exp(-first)), 2 / (1 + math.exp(-second))
    alpha = 2 / (1 + math.exp(second - first))
    return alpha, 2 - alpha
