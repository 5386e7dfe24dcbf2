"""The sum that every LAuReL residual is, in torch, with a backward that reads and writes as little as it can.

    y = Σ_i s_i·t_i + cat_l(t_l A_l) U

``s_i`` are α, β and γ (scalars or vectors over D), ``t_i`` the skip, the branch and the earlier activations, ``A_l``
the first factors of the low-rank products and U all their second factors, one below the other, with β and γ multiplied
in. Left to autograd, every one of these small factors costs full-size temporaries; a residual add is bound by memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Form:
    """What of a sum is no tensor.

    Attributes:
        terms: number of terms s_i·t_i. A scale of ``None`` is 1.
        lows: for each first factor A_l, the number of the tensor it is applied to.
        channels: tensors are ``(N, D, positions)``; else ``(..., D)``.
        dtype: element type of y.
        work: element type of the arithmetic.
    """

    terms: int
    lows: tuple[int, ...]
    channels: bool
    dtype: torch.dtype
    work: torch.dtype


def laurel_sum(
    form: Form, scales: Sequence[Tensor | None], tensors: Sequence[Tensor], downs: Sequence[Tensor], up: Tensor | None
) -> Tensor:
    """Returns y = Σ_i s_i·t_i + cat_l(t_l A_l) U.

    Args:
        form: see :class:`Form`.
        scales: s_i, one for each of the first ``form.terms`` tensors: ``None`` or a shape that broadcasts.
        tensors: t_i, then tensors that enter through A_l alone; all of one shape.
        downs: A_l, ``(D, r)`` each.
        up: U, ``(len(downs)·r, D)``, or ``None`` without low-rank products.
    """
    arguments = (form, *scales, *downs, up, *tensors)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return _traced(*arguments)
    result: Tensor = _LaurelSum.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


_Parts = tuple[Sequence[Tensor | None], Sequence[Tensor], Tensor | None, Sequence[Tensor]]


def _split(form: Form, arguments: Sequence[Any]) -> _Parts:
    """Returns (scales, downs, up, tensors)."""
    a, b = form.terms, form.terms + len(form.lows)
    return arguments[:a], arguments[a:b], arguments[b], arguments[b + 1 :]


def _traced(form: Form, *arguments: Any) -> Tensor:
    """The sum in plain differentiable operations: compilers and functorch see through them."""
    scales, downs, up, tensors = _split(form, arguments)
    y = _scaled(tensors[0].to(form.work), scales[0])
    for scale, tensor in zip(scales[1:], tensors[1 : form.terms], strict=True):
        y = y + _scaled(tensor.to(form.work), scale)
    if up is not None:
        y = y + _up(_hidden(form, downs, tensors), up, form)
    return y.to(form.dtype)


def _scaled(tensor: Tensor, scale: Tensor | None) -> Tensor:
    return tensor if scale is None else tensor * scale


def _down(tensor: Tensor, a: Tensor, form: Form) -> Tensor:
    """Returns t A: ``(..., r)`` or ``(N, r, positions)``."""
    tensor = tensor.to(form.work)
    return torch.bmm(a.t().expand(tensor.shape[0], -1, -1), tensor) if form.channels else tensor @ a


def _up(hidden: Tensor, up: Tensor, form: Form) -> Tensor:
    """Returns H U: ``(..., D)`` or ``(N, D, positions)``."""
    return torch.bmm(up.t().expand(hidden.shape[0], -1, -1), hidden) if form.channels else hidden @ up


def _add_up(out: Tensor, hidden: Tensor, up: Tensor, form: Form) -> None:
    """Adds H U to *out*, a fresh contiguous tensor, in place."""
    if form.channels:
        out.baddbmm_(up.t().expand(hidden.shape[0], -1, -1), hidden)
    else:
        out.view(-1, out.shape[-1]).addmm_(hidden.reshape(-1, hidden.shape[-1]), up)


def _hidden(form: Form, downs: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Returns H = cat_l(t_l A_l)."""
    hidden = [_down(tensors[i], a, form) for i, a in zip(form.lows, downs, strict=True)]
    return hidden[0] if len(hidden) == 1 else torch.cat(hidden, 1 if form.channels else -1)


def _gram(left: Tensor, right: Tensor, form: Form) -> Tensor:
    """Returns leftᵀ right summed over all rows: ``(left's features, right's features)``."""
    left, right = left.to(form.work), right.to(form.work)
    if form.channels:
        return torch.bmm(left, right.transpose(1, 2)).sum(0)
    return left.reshape(-1, left.shape[-1]).t() @ right.reshape(-1, right.shape[-1])


def _dot(grad: Tensor, tensor: Tensor, scale: Tensor) -> Tensor:
    """Returns Σ grad·tensor summed down to the shape of *scale*, in its element type."""
    same = grad.dtype == tensor.dtype == scale.dtype
    if scale.numel() == 1 and same and grad.is_contiguous() and tensor.is_contiguous():
        return torch.dot(grad.view(-1), tensor.view(-1)).view(scale.shape)
    return (grad.to(scale.dtype) * tensor).sum_to_size(scale.shape)


class _LaurelSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, form: Form, *arguments: Any) -> Tensor:
        scales, downs, up, tensors = _split(form, arguments)
        with torch.autocast(tensors[0].device.type, enabled=False):
            y = _scaled(tensors[0].to(form.work), scales[0])
            for scale, tensor in zip(scales[1:], tensors[1 : form.terms], strict=True):
                if y is tensors[0]:
                    y = y + _scaled(tensor.to(form.work), scale)
                else:
                    y.add_(tensor) if scale is None else y.addcmul_(tensor.to(form.work), scale)
            hidden = None
            if up is not None:
                hidden = _hidden(form, downs, tensors)
                _add_up(y, hidden, up, form)
        ctx.form = form
        ctx.save_for_backward(hidden, *arguments)
        return y.to(form.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        form, (hidden, *arguments) = ctx.form, ctx.saved_tensors
        scales, downs, up, tensors = _split(form, arguments)
        if up is not None and torch.is_grad_enabled():  # a second derivative runs through H too
            hidden = _hidden(form, downs, tensors)
        need_scales, need_downs, need_up, need_tensors = _split(form, ctx.needs_input_grad[1:])
        of_scales = [
            _dot(grad, tensor, scale) if need else None  # type: ignore[arg-type]
            for scale, tensor, need in zip(scales, tensors, need_scales, strict=False)
        ]
        of_hidden: list[Tensor] = []
        if up is not None:
            of_hidden = list(_down(grad, up.t(), form).split([a.shape[1] for a in downs], 1 if form.channels else -1))
        of_downs = [
            _gram(tensors[i], of_h, form) if need else None
            for i, of_h, need in zip(form.lows, of_hidden, need_downs, strict=True)
        ]
        of_up = _gram(hidden, grad, form) if need_up else None
        of_tensors = [
            _of_tensor(form, grad, i, scales, downs, of_hidden).to(tensor.dtype) if need else None
            for i, (tensor, need) in enumerate(zip(tensors, need_tensors, strict=True))
        ]
        return (None, *of_scales, *of_downs, of_up, *of_tensors)


def _of_tensor(
    form: Form,
    grad: Tensor,
    i: int,
    scales: Sequence[Tensor | None],
    downs: Sequence[Tensor],
    of_hidden: Sequence[Tensor],
) -> Tensor:
    """Returns the gradient of tensor i: s_i·grad + Σ_l (grad Uᵀ)_l A_lᵀ."""
    lows = [(of_h, a.t()) for low, of_h, a in zip(form.lows, of_hidden, downs, strict=True) if low == i]
    if i < form.terms:
        scale = scales[i]
        if scale is None and not lows:
            return grad
        out = grad.to(form.work, copy=True).contiguous() if scale is None else (grad * scale).contiguous()
    else:
        (of_h, a), *lows = lows
        out = _up(of_h, a, form)
    for of_h, a in lows:
        _add_up(out, of_h, a, form)
    return out
