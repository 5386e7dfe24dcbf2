"""``ai.laurel`` operators inside a torch graph that is on its way to ONNX.

While :func:`exporting`, every :class:`LaurelResidual` of a model stands for its ONNX operator: the tensors it holds are
the resolved ones and its call is one node. No other part of the model changes, and nothing stays changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import RewriteError
from ..opset.schema import DOMAIN, VERSION, Operator
from .module import LaurelResidual

SITE = "site"
"""Attribute by which a fresh node names its site, until the tensors of the file carry that name."""

OUTER = "outer"
"""Attribute that is 1 on a fresh node for an outer add of an n-ary join."""

ONE = "one"
"""The constant β = 1 of the outer adds of an n-ary join."""


class ExportedResidual(nn.Module):
    """A residual as the operator set has it: resolved tensors as buffers, one ``ai.laurel`` node per add.

    Works under ``torch.onnx.export(dynamo=True)`` alone.

    Raises:
        RewriteError: the operator set has no layout of that many axes.
    """

    def __init__(self, residual: LaurelResidual) -> None:
        super().__init__()
        self.spec = residual.spec
        try:
            self.operator = Operator.of(self.spec)
        except ValueError as error:
            raise RewriteError(
                f"site {self.spec.site!r}: {DOMAIN} has operators for up to three axes behind the channels, found a "
                f"join of {self.spec.ndim} axes."
            ) from error
        for name, tensor in residual.resolved().items():
            self.register_buffer(name, tensor.detach().clone())
        if self.spec.has_rw:
            self.register_buffer(ONE, torch.ones((), dtype=self.alpha.dtype, device=self.alpha.device))

    alpha: Tensor

    def forward(
        self,
        x: Tensor,
        *values: Tensor,
        outer: bool = False,
        skip_scale: float = 1.0,
        branch_scale: float = 1.0,
        relu: bool = False,
    ) -> Tensor:
        """The node or nodes of :meth:`LaurelResidual.forward`, in the order of its adds."""
        links = 0 if outer else self.operator.links
        branches, previous = values[: len(values) - links], values[len(values) - links :]
        if skip_scale != 1.0:
            x, previous = x * skip_scale, tuple(p * skip_scale for p in previous)
        for j, f in enumerate(branches):
            f = f if branch_scale == 1.0 else f * branch_scale
            if outer or j:
                x = self.outer(x, f)
            else:
                x = self.node(self.operator, x, f, tuple(self.spec.tensor_shapes()), previous)
        return x.relu() if relu else x

    def outer(self, x: Tensor, f: Tensor) -> Tensor:
        """x + α·f."""
        if not self.spec.has_rw:
            return x + f
        return self.node(Operator(rw=True, layout=self.operator.layout), x, f, ("alpha", ONE), ())

    def node(
        self, operator: Operator, x: Tensor, f: Tensor, names: tuple[str, ...], previous: tuple[Tensor, ...]
    ) -> Tensor:
        """One node, its operands in the element type of its tensors, its result in that of ``x + f``."""
        tensors = [self.get_buffer(name) for name in names]
        dtype, work = torch.promote_types(x.dtype, f.dtype), tensors[0].dtype
        operands = [t.to(work) for t in (x, f, *previous)]
        y: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{operator.name}",
            (*operands[:2], *tensors, *operands[2:]),
            {SITE: self.spec.site, OUTER: int(ONE in names)},
            dtype=work,
            shape=x.shape,
            version=VERSION,
        )
        return y.to(dtype)


@contextmanager
def exporting(model: nn.Module) -> Iterator[None]:
    """Lets every LAuReL residual inside *model* stand for its ONNX operator; all are back afterwards."""
    swapped: list[tuple[nn.Module, str, LaurelResidual]] = []
    made: dict[LaurelResidual, ExportedResidual] = {}
    try:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, LaurelResidual):
                    made.setdefault(child, ExportedResidual(child))
                    swapped.append((parent, name, child))
        for parent, name, child in swapped:
            made[child]._modules.update(child._modules)
            setattr(parent, name, made[child])
        yield
    finally:
        for parent, name, child in swapped:
            setattr(parent, name, child)
