"""The sums of :mod:`.sum` on the kernels' library: float32 on the processor, one pass over memory.

The library reads and writes the tensors' own memory; it uses as many threads as torch does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import runtime

if TYPE_CHECKING:
    from .sum import Form

MAX_TERMS = 16
"""``kMaxTerms`` of kernels/sum.h: the terms of a sum, and its products."""

_Integers = ctypes.POINTER(ctypes.c_int64)
_Pointers = ctypes.POINTER(ctypes.c_void_p)


class _Sum(ctypes.Structure):
    """``laurel::Sum`` of kernels/sum.h, where the fields are explained."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "width", "inner", "values", "terms", "products")),
        *((name, ctypes.c_int64) for name in ("relu", "backward", "threads")),
        *((name, _Integers) for name in ("sources", "ranks", "per_channel")),
        *((name, _Pointers) for name in ("scales", "value", "down")),
        *((name, ctypes.c_void_p) for name in ("up", "y", "hidden", "grad")),
        *((name, _Pointers) for name in ("of_scales", "of_value", "of_down")),
        ("of_up", ctypes.c_void_p),
    )


def _integers(values: Sequence[int]) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


def _pointers(tensors: Sequence[Tensor | None]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))


def takes(form: Form, arguments: Sequence[Tensor | None]) -> bool:
    """Whether the library computes the sum of these arguments: plain float32 tensors, and nobody traces."""
    return (
        form.dtype == form.work == torch.float32
        and max(form.terms, len(form.lows)) <= MAX_TERMS
        and all(a is None or _is_plain(a) for a in arguments)
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
        and runtime.kernel_library() is not None
    )


def _is_plain(t: Tensor) -> bool:
    return (
        type(t) in (Tensor, nn.Parameter)
        and t.dtype == torch.float32
        and t.device.type == "cpu"
        and t.layout == torch.strided
        and not t.is_neg()
    )


class NativeSum:
    """One sum with its arguments in the memory that the library reads.

    Args:
        form: see :class:`~laurel_graph.torch_residual.sum.Form`.
        scales, downs, up, tensors: the arguments of :func:`~laurel_graph.torch_residual.sum.laurel_sum`.
    """

    def __init__(
        self,
        form: Form,
        scales: Sequence[Tensor | None],
        downs: Sequence[Tensor],
        up: Tensor | None,
        tensors: Sequence[Tensor],
    ) -> None:
        like = tensors[0]
        self.form, self.like = form, like
        self.scales = [s if s is None else s.contiguous() for s in scales]
        self.downs = [a.contiguous() for a in downs]
        self.up = up if up is None else up.contiguous()
        self.tensors = [form.stored(t) for t in tensors]
        width = like.shape[form.axis]
        inner = 1
        for axis in form.order[form.order.index(form.axis) + 1 :]:
            inner *= like.shape[axis]
        self.fields = _Sum(
            rows=like.numel() // max(1, width * inner),
            width=width,
            inner=0 if inner == 1 else inner,
            values=len(tensors),
            terms=form.terms,
            products=len(downs),
            relu=form.relu,
            threads=torch.get_num_threads(),
            sources=_integers(form.lows),
            ranks=_integers([a.shape[1] for a in downs]),
            per_channel=_integers([s is not None and s.numel() > 1 for s in scales]),
            scales=_pointers(self.scales),
            value=_pointers(self.tensors),
            down=_pointers(self.downs),
            up=None if self.up is None else self.up.data_ptr(),
        )

    def _run(self) -> None:
        library = runtime.kernel_library()
        if library is None or not library.laurel_sum(ctypes.byref(self.fields)):
            raise MemoryError(f"no memory for a residual of shape {tuple(self.like.shape)}")

    def forward(self, keeps_hidden: bool) -> tuple[Tensor, list[Tensor]]:
        """Returns y, and what of it :meth:`gradients` needs if U is to get one."""
        y = self.form.empty(self.like, torch.float32)
        hidden: list[Tensor] = []
        self.fields.y = y.data_ptr()
        if keeps_hidden:
            hidden.append(torch.empty(self._hidden_floats()))
            self.fields.hidden = hidden[0].data_ptr()
        self._run()
        return y, hidden

    def _hidden_floats(self) -> int:
        library: Any = runtime.kernel_library()
        return int(library.laurel_hidden_floats(ctypes.byref(self.fields)))

    def gradients(
        self, hidden: Sequence[Tensor], y: Tensor | None, grad: Tensor, needs: Sequence[Any]
    ) -> list[Tensor | None]:
        """Returns the gradient of every scale, A, U and tensor that needs one.

        Args:
            hidden: what :meth:`forward` returned.
            y: the result, if the form has a relu.
            grad: the gradient of y.
            needs: for each scale, each A, U and each tensor, whether it needs a gradient.

        Raises:
            RuntimeError: the passes run on different instruction sets.
        """
        if hidden and hidden[0].numel() != self._hidden_floats():
            raise RuntimeError("LAUREL_ISA has changed between a forward pass and its backward pass")
        form = self.form
        need_scales, need_downs, need_up, need_tensors = needs
        of_scales = [
            torch.empty_like(s) if need and s is not None else None
            for s, need in zip(self.scales, need_scales, strict=True)
        ]
        of_downs = [torch.empty_like(a) if need else None for a, need in zip(self.downs, need_downs, strict=True)]
        of_up = torch.empty_like(self.up) if need_up and self.up is not None else None
        passed = [i for i in form.passed(self.scales) if need_tensors[i]]
        written: list[Tensor | None] = [
            form.empty(self.like, torch.float32) if need and i not in passed else None
            for i, need in enumerate(need_tensors)
        ]
        unscaled = grad
        if form.relu and passed:
            unscaled = written[passed[0]] = form.empty(self.like, torch.float32)
        stored = form.stored(grad)
        fields = self.fields
        fields.backward = True
        fields.grad = stored.data_ptr()
        fields.y = None if y is None else y.data_ptr()
        fields.hidden = hidden[0].data_ptr() if hidden else None
        fields.of_scales, fields.of_value = _pointers(of_scales), _pointers(written)
        fields.of_down = _pointers(of_downs)
        fields.of_up = None if of_up is None else of_up.data_ptr()
        if any(t is not None for t in (*of_scales, *of_downs, of_up, *written)):
            self._run()
        for i in passed:
            written[i] = unscaled
        return [*of_scales, *of_downs, of_up, *written]
