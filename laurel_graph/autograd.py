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
        axis: the feature axis, from 0.
        order: the axes from the outermost to the innermost in the memory of y.
        dtype: element type of y.
        work: element type of the arithmetic.
    """

    terms: int
    lows: tuple[int, ...]
    axis: int
    order: tuple[int, ...]
    dtype: torch.dtype
    work: torch.dtype

    @property
    def last(self) -> bool:
        """Whether D is innermost in memory: products then run on ``(rows, D)``, else on ``(N, D, positions)``."""
        return self.order[-1] == self.axis

    def packed(self, t: Tensor) -> Tensor:
        """Returns *t* with its memory in :attr:`order`; itself where it is so already."""
        stored = t.permute(self.order)
        return t if stored.is_contiguous() else self.unpacked(stored.contiguous())

    def unpacked(self, stored: Tensor) -> Tensor:
        """Returns a tensor whose axes are in :attr:`order` with its axes in their own order."""
        return stored.permute([self.order.index(axis) for axis in range(len(self.order))])

    def matrix(self, t: Tensor) -> Tensor:
        """Returns *t* as ``(rows, D)`` or ``(N, D, positions)``; a view where its memory is in :attr:`order`."""
        stored = t.permute(self.order).contiguous()
        if self.last:
            return stored.view(-1, stored.shape[-1]) if t.numel() else stored.flatten(0, -2)
        before = self.order.index(self.axis)
        stored = stored.flatten(before + 1)
        return stored.flatten(0, before - 1) if before else stored.unsqueeze(0)


def memory_order(x: Tensor, f: Tensor) -> tuple[int, ...]:
    """Returns the axes from the outermost to the innermost in the memory of ``x + f``."""
    order = list(range(x.ndim))
    if not (x.is_contiguous() and f.is_contiguous()):
        of_x, of_f = (torch.empty_strided(t.shape, t.stride(), device="meta") for t in (x, f))
        strides = torch.add(of_x, of_f).stride()
        order.sort(key=lambda axis: -strides[axis])
    return tuple(order)


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
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return _traced(form, *scales, *downs, up, *tensors)
    y: Tensor = _LaurelSum.apply(form, *scales, *downs, up, *tensors)  # type: ignore[no-untyped-call]
    return y


_Parts = tuple[Sequence[Any], Sequence[Any], Any, Sequence[Any]]


def _split(form: Form, arguments: Sequence[Any]) -> _Parts:
    """Returns (scales, downs, up, tensors)."""
    a, b = form.terms, form.terms + len(form.lows)
    return arguments[:a], arguments[a:b], arguments[b], arguments[b + 1 :]


def _traced(form: Form, *arguments: Tensor | None) -> Tensor:
    """The sum in plain differentiable operations: compilers and functorch see through them."""
    scales, downs, up, tensors = _split(form, arguments)
    y = _scaled(tensors[0].to(form.work), scales[0])
    for scale, tensor in zip(scales[1:], tensors[1 : form.terms], strict=True):
        y = y + _scaled(tensor.to(form.work), scale)
    if up is not None:
        y = y + _product(_hidden(form, downs, tensors), up, form, y)
    return form.packed(y).to(form.dtype)


def _scaled(tensor: Tensor, scale: Tensor | None) -> Tensor:
    return tensor if scale is None else tensor * scale


def _down(tensor: Tensor, a: Tensor, form: Form) -> Tensor:
    """Returns t A: ``(rows, r)`` or ``(N, r, positions)``."""
    matrix = form.matrix(tensor.to(form.work))
    return matrix @ a if form.last else torch.bmm(a.t().expand(matrix.shape[0], -1, -1), matrix)


def _hidden(form: Form, downs: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Returns H = cat_l(t_l A_l)."""
    hidden = [_down(tensors[i], a, form) for i, a in zip(form.lows, downs, strict=True)]
    return hidden[0] if len(hidden) == 1 else torch.cat(hidden, 1)


def _product(hidden: Tensor, up: Tensor, form: Form, like: Tensor) -> Tensor:
    """Returns H U in the shape of *like*."""
    product = hidden @ up if form.last else torch.bmm(up.t().expand(hidden.shape[0], -1, -1), hidden)
    return form.unpacked(product.view([like.shape[axis] for axis in form.order]))


def _add_product(out: Tensor, hidden: Tensor, up: Tensor, form: Form) -> None:
    """Adds H U in place to *out*, a fresh tensor whose memory is in the form's order."""
    matrix = form.matrix(out)
    if form.last:
        matrix.addmm_(hidden, up)
    else:
        matrix.baddbmm_(up.t().expand(hidden.shape[0], -1, -1), hidden)


def _gram(left: Tensor, right: Tensor, form: Form) -> Tensor:
    """Returns leftᵀ right summed over all rows, of two matrices: ``(left's features, right's features)``."""
    return left.t() @ right if form.last else torch.bmm(left, right.transpose(1, 2)).sum(0)


def _dot(grad: Tensor, tensor: Tensor, scale: Tensor, form: Form) -> Tensor:
    """Returns Σ grad·tensor summed down to the shape of *scale*, in its element type."""
    if scale.numel() == 1 and grad.dtype == tensor.dtype == scale.dtype:
        stored = grad.permute(form.order), tensor.permute(form.order)
        if all(t.is_contiguous() for t in stored):
            return torch.dot(stored[0].flatten(), stored[1].flatten()).view(scale.shape)
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
            y = form.packed(y)
            hidden = None
            if up is not None:
                hidden = _hidden(form, downs, tensors)
                _add_product(y, hidden, up, form)
        ctx.form = form
        ctx.save_for_backward(hidden, *arguments)
        return y.to(form.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        form, (hidden, *arguments) = ctx.form, ctx.saved_tensors
        scales, downs, up, tensors = _split(form, arguments)
        need_scales, need_downs, need_up, need_tensors = _split(form, ctx.needs_input_grad[1:])
        of_scales = [
            _dot(grad, tensor, scale, form) if need else None
            for scale, tensor, need in zip(scales, tensors, need_scales, strict=False)
        ]
        of_downs: list[Tensor | None] = []
        of_hidden: Sequence[Tensor] = ()
        of_up = None
        if up is not None:
            if torch.is_grad_enabled():  # a second derivative runs through H too
                hidden = _hidden(form, downs, tensors)
            of_hidden = torch.split(_down(grad, up.t(), form), [a.shape[1] for a in downs], 1)
            of_downs = [
                _gram(form.matrix(tensors[i].to(form.work)), of_h, form) if need else None
                for i, of_h, need in zip(form.lows, of_hidden, need_downs, strict=True)
            ]
            of_up = _gram(hidden, form.matrix(grad.to(form.work)), form) if need_up else None
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
    if i >= form.terms:
        (of_h, a), *lows = lows
        out = _product(of_h, a, form, grad)
    elif (scale := scales[i]) is not None:
        out = form.packed(grad * scale)
    elif not lows:
        return grad
    else:
        out = form.packed(grad.to(form.work, copy=True))
    for of_h, a in lows:
        _add_product(out, of_h, a, form)
    return out
