"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..builder import Value
from ..node import Node
from ..registry import Registry


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b with NumPy's rules."""
    if a.dtype in (torch.uint32, torch.uint64, torch.uint16):
        return (a.to(torch.int64) @ b.to(torch.int64)).to(a.dtype)
    return torch.matmul(a, b)


def _matmul(node: Node) -> Value:
    integer = node[0].elem_type in (4, 12, 13)
    return node.emit(matmul if integer else torch.matmul, node[0], node[1])


def gemm(a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float, trans_a: bool, trans_b: bool) -> Tensor:
    """α·op(a) @ op(b) + β·c."""
    a, b = a.t() if trans_a else a, b.t() if trans_b else b
    if not a.dtype.is_floating_point:
        out = a.to(torch.int64) @ b.to(torch.int64)
        out = out if c is None else out + c.to(torch.int64)
        return out.to(a.dtype)
    out = a @ b
    out = out if alpha == 1 else out * alpha
    if c is None or beta == 0:
        return out
    return out + (c if beta == 1 else c * beta)


def _gemm(node: Node) -> Value:
    alpha, beta = node.attr("alpha", 1.0), node.attr("beta", 1.0)
    trans_a, trans_b = bool(node.attr("transA", 0)), bool(node.attr("transB", 0))
    bias = node.get(2)
    kinds = {value.elem_type for value in node.inputs[:3] if value is not None and value.elem_type}
    floating = bool(kinds & {1, 10, 11, 16})  # all three have one type, though it may be known of one alone
    vector = bias is not None and bias.shape is not None and len(bias.shape) == 1 and bias.shape[0] != 1
    if floating and alpha == 1 and not trans_a and (bias is None or (beta == 1 and vector)):
        weight = node[1] if trans_b else node.emit(torch.t, node[1])
        return node.emit(F.linear, node[0], weight, bias)
    node.require(floating or not kinds or alpha == beta == 1, "α and β of an integer product")
    return node.emit(gemm, node[0], node[1], bias, alpha, beta, trans_a, trans_b)


def _einsum(node: Node) -> Value:
    return node.emit(einsum, node.attr("equation").replace(" ", ""), *node.inputs)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Einstein summation; letters of either case are distinct, an output is implied if absent."""
    return torch.einsum(equation, *operands)


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    registry.add("MatMul", _matmul)
    registry.add("Gemm", _gemm, 7)
    registry.add("Einsum", _einsum, 12)
