"""The sum that every LAuReL residual is, in torch, with a backward that reads and writes as little as it can.

    y = Σ_i s_i·t_i + cat_l(t_l A_l) U

``s_i`` are α, β and γ (scalars or vectors over D), ``t_i`` the skip, the branch and the earlier activations, ``A_l``
the first factors of the low-rank products and U all their second factors, one below the other, with β and γ multiplied
in. Left to autograd, every one of these small factors costs full-size temporaries; a residual add is bound by memory.

Float32 on the processor is computed by the kernels' library (:mod:`.native_sum`), all else by torch's operations here,
piece by piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import native_sum as sums


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
        relu: whether y is the positive part of the sum.
    """

    terms: int
    lows: tuple[int, ...]
    axis: int
    order: tuple[int, ...]
    dtype: torch.dtype
    work: torch.dtype
    relu: bool = False

    @property
    def last(self) -> bool:
        """Whether D is innermost in memory: products then run on ``(rows, D)``, else on ``(N, D, positions)``."""
        return self.order[-1] == self.axis

    def passed(self, scales: Sequence[Tensor | None]) -> list[int]:
        """Returns the terms whose gradient is that of the sum as it is."""
        return [i for i, scale in enumerate(scales) if scale is None and i not in self.lows]

    def stored(self, t: Tensor) -> Tensor:
        """Returns *t* with its axes in :attr:`order`, without gaps in memory."""
        return t.permute(self.order).contiguous()

    def matrix(self, t: Tensor) -> Tensor:
        """Returns *t* as ``(rows, D)`` or ``(N, D, positions)``; a view where its memory is in :attr:`order`."""
        stored = self.stored(t)
        if self.last:
            return stored.view(-1, stored.shape[-1]) if t.numel() else stored.flatten(0, -2)
        before = self.order.index(self.axis)
        stored = stored.flatten(before + 1)
        return stored.flatten(0, before - 1) if before else stored.unsqueeze(0)

    def empty(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns a new tensor in the shape of *like* with its memory in :attr:`order`.

        It is no view, so that an activation behind the residual may work on it in place, and autograd may add the
        gradients of other uses to this one in place.
        """
        strides, step = [0] * like.dim(), 1
        for axis in reversed(self.order):
            strides[axis] = step
            step *= max(1, like.shape[axis])
        return torch.empty_strided(like.shape, strides, dtype=dtype, device=like.device)

    def restored(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Returns a view of what :meth:`matrix` makes, in the shape of *like* and with its memory in :attr:`order`."""
        stored = matrix.view([like.shape[axis] for axis in self.order])
        return stored.permute([self.order.index(axis) for axis in range(len(self.order))])

    def factor(self, scale: Tensor | None) -> Tensor | None:
        """Returns a scale in a shape that broadcasts against :meth:`matrix`."""
        return scale if scale is None else scale.reshape(-1) if self.last else scale.reshape(-1, 1)


CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By number of axes, the memory format with D innermost."""


def memory_order(x: Tensor, f: Tensor) -> tuple[int, ...]:
    """Returns the axes from the outermost to the innermost in the memory of ``x + f``."""
    order = list(range(x.ndim))
    if not (x.is_contiguous() and f.is_contiguous()):
        layout = CHANNELS_LAST.get(x.ndim)
        if layout and x.is_contiguous(memory_format=layout) and f.is_contiguous(memory_format=layout):
            return (0, *order[2:], 1)  # what follows would find it too, at a hundred times the cost
        of_x, of_f = (torch.empty_strided(t.shape, t.stride(), device="meta") for t in (x, f))
        strides = torch.add(of_x, of_f).stride()
        order.sort(key=lambda axis: -strides[axis])
    return tuple(order)


def laurel_sum(
    form: Form, scales: Sequence[Tensor | None], tensors: Sequence[Tensor], downs: Sequence[Tensor], up: Tensor | None
) -> Tensor:
    """Returns y = Σ_i s_i·t_i + cat_l(t_l A_l) U, or the positive part of it if ``form.relu``.

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
    """The sum in plain differentiable operations: compilers, functorch and second derivatives go through them."""
    scales, downs, up, tensors = _split(form, arguments)
    matrices = [form.matrix(tensor.to(form.work)) for tensor in tensors]
    y, *terms = (
        matrix if (factor := form.factor(scale)) is None else matrix * factor
        for matrix, scale in zip(matrices, scales, strict=False)
    )
    for term in terms:
        y = y + term
    if up is not None:
        y = y + _down(_hidden(form, downs, matrices), up, form)
    y = form.restored(y, tensors[0]).to(form.dtype)
    return y.relu() if form.relu else y


def _down(matrix: Tensor, a: Tensor, form: Form) -> Tensor:
    """Returns t A: ``(rows, r)`` or ``(N, r, positions)``."""
    return matrix @ a if form.last else torch.bmm(a.t().expand(matrix.shape[0], -1, -1), matrix)


def _hidden(form: Form, downs: Sequence[Tensor], matrices: Sequence[Tensor]) -> Tensor:
    """Returns H = cat_l(t_l A_l)."""
    hidden = [_down(matrices[i], a, form) for i, a in zip(form.lows, downs, strict=True)]
    return hidden[0] if len(hidden) == 1 else torch.cat(hidden, 1)


CHUNK = 2**19
"""Elements of a tensor that a processor takes at a time: one piece of every tensor then stays in its cache."""


def _pieces(matrix: Tensor) -> list[slice]:
    """Returns the rows (or samples) of a matrix in pieces; in one piece on an accelerator, which has no such cache."""
    rows = max(len(matrix), 1)
    size = rows if matrix.device.type != "cpu" else max(1, CHUNK * rows // max(matrix.numel(), 1))
    return [slice(start, start + size) for start in range(0, len(matrix), size)]


def _scale_to(out: Tensor, part: Tensor, factor: Tensor | None) -> None:
    """Writes s·t to *out*."""
    if factor is None:
        out.copy_(part)
    else:
        torch.mul(part, factor, out=out)


def _add_product(out: Tensor, hidden: Tensor, up: Tensor, form: Form) -> None:
    """Adds H U in place to the matrix *out*."""
    if form.last:
        out.addmm_(hidden, up)
    else:
        out.baddbmm_(up.t().expand(hidden.shape[0], -1, -1), hidden)


def _add_gram(out: Tensor, narrow: Tensor, wide: Tensor, form: Form) -> None:
    """Adds narrowᵀ wide, summed over all rows of two matrices, to *out* ``(r, D)``.

    On a processor ``(r, D)`` takes half the time of ``(D, r)``.
    """
    if form.last:
        out.addmm_(narrow.t(), wide)
    else:
        out.addbmm_(narrow, wide.transpose(1, 2))


def _add_dot(out: Tensor, left: Tensor, right: Tensor, form: Form) -> None:
    """Adds Σ left·right to *out*: over everything where it has one element, else over all but the features."""
    if out.numel() == 1:
        out += torch.dot(left.reshape(-1), right.reshape(-1))
    else:
        out += (left * right).sum(0 if form.last else (0, 2)).view(out.shape)


class _LaurelSum(torch.autograd.Function):
    """Both directions take one piece of all tensors at a time, so that each is read from memory and written once."""

    @staticmethod
    def forward(ctx: Any, form: Form, *arguments: Any) -> Tensor:
        ctx.form, ctx.native = form, sums.takes(form, arguments)
        if ctx.native:
            _, _, need_up, _ = _split(form, ctx.needs_input_grad[1:])
            result, hidden = sums.NativeSum(form, *_split(form, arguments)).forward(keeps_hidden=need_up)
        else:
            result, hidden = _forward(form, arguments)
        ctx.save_for_backward(*arguments, result if form.relu else None, *hidden)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        form, needs = ctx.form, ctx.needs_input_grad[1:]
        saved = ctx.saved_tensors  # asked for once: under checkpointing that recomputes them
        arguments, result, hidden = saved[: len(needs)], saved[len(needs)], saved[len(needs) + 1 :]
        if torch.is_grad_enabled():
            return None, *_differentiable_gradients(form, arguments, grad, needs)
        if ctx.native and sums.takes(form, (*arguments, grad)):
            native = sums.NativeSum(form, *_split(form, arguments))
            return None, *native.gradients(hidden, result, grad, _split(form, needs))
        if ctx.native:  # only now somebody looks on: H is not in the form that torch's operations need
            _, hidden = _forward(form, arguments)
        with torch.autocast(grad.device.type, enabled=False):
            if form.relu:
                grad = torch.ops.aten.threshold_backward(grad, result, 0)
            return None, *_gradients(form, arguments, hidden, grad, needs)


def _forward(form: Form, arguments: Sequence[Any]) -> tuple[Tensor, list[Tensor]]:
    """Returns y, and the H of each of its pieces."""
    scales, downs, up, tensors = _split(form, arguments)
    factors = [form.factor(scale) for scale in scales]
    matrices = [form.matrix(tensor) for tensor in tensors]
    result = form.empty(tensors[0], form.dtype)
    y = form.matrix(result)
    hidden: list[Tensor] = []
    with torch.autocast(y.device.type, enabled=False):
        for piece in _pieces(y):
            parts = [matrix[piece].to(form.work) for matrix in matrices]
            out = y[piece] if form.dtype == form.work else torch.empty_like(parts[0])
            _scale_to(out, parts[0], factors[0])
            for part, factor in zip(parts[1:], factors[1:], strict=False):
                out.add_(part) if factor is None else out.addcmul_(part, factor)
            if up is not None:
                hidden.append(_hidden(form, downs, parts))
                _add_product(out, hidden[-1], up, form)
            if form.relu:
                out.relu_()
            if form.dtype != form.work:
                y[piece] = out
    return result, hidden


def _differentiable_gradients(
    form: Form, arguments: Sequence[Any], grad: Tensor, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Returns the gradients as functions of the arguments, for a second derivative."""
    own = [a if a is None else a.view_as(a) for a in arguments]  # one tensor may be several arguments
    wanted = [a for a, need in zip(own, needs, strict=True) if need and a is not None]
    found = iter(torch.autograd.grad(_traced(form, *own), wanted, grad, create_graph=True))
    return [next(found) if need else None for need in needs]


def _gradients(
    form: Form, arguments: Sequence[Any], hidden: Sequence[Tensor], grad: Tensor, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Returns the gradient of every argument that needs one.

    With G the gradient of y: of s_i, Σ G·t_i; of U, HᵀG; of A_l, t_lᵀ(GUᵀ)_l; of t_i, s_i·G + Σ_l (GUᵀ)_l A_lᵀ.
    """
    scales, downs, up, tensors = _split(form, arguments)
    need_scales, need_downs, need_up, need_tensors = _split(form, needs)
    factors = [form.factor(scale) for scale in scales] + [None] * (len(tensors) - form.terms)
    whole = form.matrix(grad)

    of_scales = [torch.zeros_like(s) if need else None for s, need in zip(scales, need_scales, strict=True)]
    of_downs = [
        torch.zeros_like(a.t(), memory_format=torch.contiguous_format) if need else None
        for a, need in zip(downs, need_downs, strict=True)
    ]
    of_up = torch.zeros_like(up) if need_up else None
    read = {i for i, need in enumerate(need_scales) if need}
    read |= {i for i, need in zip(form.lows, need_downs, strict=True) if need}
    matrices = {i: form.matrix(tensors[i]) for i in read}
    passed = form.passed(scales)
    of_tensors = [
        None if not need else grad.to(tensor.dtype) if i in passed else form.empty(tensor, tensor.dtype)
        for i, (tensor, need) in enumerate(zip(tensors, need_tensors, strict=True))
    ]
    written = {i: form.matrix(of) for i, of in enumerate(of_tensors) if of is not None and i not in passed}

    for number, piece in enumerate(_pieces(whole)):
        g = whole[piece].to(form.work)
        parts = {i: matrix[piece].to(form.work) for i, matrix in matrices.items()}
        for i, of_scale in enumerate(of_scales):
            if of_scale is not None:
                _add_dot(of_scale, g, parts[i], form)
        backs: Sequence[Tensor] = ()
        if up is not None:
            backs = torch.split(_down(g, up.t(), form), [a.shape[1] for a in downs], 1)
            if of_up is not None:
                _add_gram(of_up, hidden[number], g, form)
            for i, back, of_down in zip(form.lows, backs, of_downs, strict=True):
                if of_down is not None:
                    _add_gram(of_down, back, parts[i], form)
        for i, matrix in written.items():
            out = matrix[piece] if matrix.dtype == form.work else torch.empty_like(g)
            if i < form.terms:
                _scale_to(out, g, factors[i])
            else:
                out.zero_()
            for low, back, a in zip(form.lows, backs, downs, strict=True):
                if low == i:
                    _add_product(out, back, a.t(), form)
            if matrix.dtype != form.work:
                matrix[piece] = out

    return [*of_scales, *(a if a is None else a.t() for a in of_downs), of_up, *of_tensors]
