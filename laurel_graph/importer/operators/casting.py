"""Cast and CastLike: changes of element type."""

from __future__ import annotations

import torch
from onnx import TensorProto
from torch import Tensor

from ..builder import Value
from ..convert import as_float
from ..elements import HALF, INTEGER_RANGE, STORAGE, type_name
from ..node import Node
from ..registry import Registry

_FLOAT8: dict[int, float] = {
    TensorProto.FLOAT8E4M3FN: 448.0,
    TensorProto.FLOAT8E4M3FNUZ: 240.0,
    TensorProto.FLOAT8E5M2: 57344.0,
    TensorProto.FLOAT8E5M2FNUZ: 57344.0,
}
"""8-bit float types and their largest finite value."""

_FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of FLOAT4E2M1."""

_PACKED = tuple(getattr(TensorProto, name) for name in ("INT4", "UINT4", "INT2", "UINT2") if hasattr(TensorProto, name))


def rounded(x: Tensor, dtype: torch.dtype, anchor: Tensor) -> Tensor:
    """Returns *x* rounded to the 16-bit float *dtype*, held in the module's float type; the gradient passes straight.

    Integers too are rounded: what a 16-bit float cannot hold is not kept.
    """
    wide = x.to(anchor.dtype)
    if x.dtype == dtype:
        return wide
    exact = wide.detach().to(dtype).to(anchor.dtype)
    return wide + (exact - wide).detach() if wide.requires_grad and bool(torch.isfinite(exact).all()) else exact


def to_integer(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns *x* as integers: fractions are cut off, what is out of range wraps around."""
    if x.dtype.is_floating_point:
        x = x.float() if x.dtype.itemsize == 1 else x
        wide = x.detach().to(torch.int64)
        return wide.view(torch.uint64) if dtype == torch.uint64 else wide.to(dtype)
    return x.to(dtype)


def to_packed(x: Tensor, elem_type: int) -> Tensor:
    """Returns *x* as 2- or 4-bit integers, one to a byte: fractions are cut off, what is out of range wraps around."""
    low, high = INTEGER_RANGE[elem_type]
    wide = to_integer(x, torch.int64)
    return ((wide - low) % (high - low + 1) + low).to(STORAGE[elem_type])


def to_float8(x: Tensor, elem_type: int, saturate: bool) -> Tensor:
    """Returns *x* as 8-bit floats, rounded half to even; out of range saturates or becomes infinite or NaN."""
    dtype, limit = STORAGE[elem_type], _FLOAT8[elem_type]
    x = x.detach().float()
    out = (x.clamp(-limit, limit) if saturate else x).to(dtype)
    if elem_type == TensorProto.FLOAT8E4M3FN and not saturate:  # torch saturates here; half-way to the next step rounds
        out = torch.where(x.abs() > limit + 16, torch.nan, out.float()).to(dtype)
    if saturate:
        out = torch.where(torch.isinf(x), (x.sign() * limit).to(dtype).float(), out.float()).to(dtype)
    return out


def to_float4(x: Tensor) -> Tensor:
    """Returns *x* rounded to the nearest FLOAT4E2M1 (half to even mantissa), as float32; out of range
    saturates, NaN becomes -0."""
    grid = torch.tensor(_FLOAT4, device=x.device)
    x = x.detach().float()
    magnitude = x.abs().clamp(max=_FLOAT4[-1]).nan_to_num(_FLOAT4[-1])
    distance = (magnitude.unsqueeze(-1) - grid).abs()
    odd = torch.arange(len(_FLOAT4), device=x.device) % 2
    nearest = (distance + odd * 1e-6).argmin(-1)
    return torch.where(torch.isnan(x), -0.0, torch.copysign(grid[nearest], x))


def cast(node: Node, elem_type: int) -> Value:
    """Emits the cast of input 0 to *elem_type*.

    float32 and the 16-bit floats are one compute type, the module's own; a cast *to* a 16-bit float rounds.
    """
    x = node[0]
    if elem_type not in STORAGE:
        node.refuse(f"a cast to {type_name(elem_type)} has no torch counterpart")
    if elem_type in HALF:
        same = x.elem_type == elem_type
        anchor = node.builder.anchor if not x.is_const else torch.empty(0)
        if same:
            return node.emit(as_float, x, anchor)
        return node.emit(rounded, x, STORAGE[elem_type], anchor)
    if elem_type == TensorProto.FLOAT:
        x = x if x.steps is None else x.steps
        return node.emit(as_float, x, node.builder.anchor if not x.is_const else torch.empty(0))
    if elem_type in _FLOAT8:
        return node.emit(to_float8, x, elem_type, bool(node.attr("saturate", 1)))
    if elem_type in _PACKED:
        return node.emit(to_packed, x, elem_type)
    if elem_type == getattr(TensorProto, "FLOAT4E2M1", -1):
        return node.emit(to_float4, x)
    dtype = STORAGE[elem_type]
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        return node.emit(to_type, x, dtype)
    return node.emit(to_integer, x, dtype)


def to_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns *x* in torch type *dtype*."""
    if x.dtype.itemsize == 1 and x.dtype.is_floating_point:
        x = x.float()
    return x != 0 if dtype == torch.bool else x.to(dtype)


def _cast(node: Node) -> Value:
    value = cast(node, node.attr("to"))
    value.elem_type = node.attr("to")
    return value


def _cast_like(node: Node) -> Value:
    elem_type = node[1].elem_type
    if elem_type is None:
        return node.emit(to_type_of, node[0], node[1])
    value = cast(node, elem_type)
    value.elem_type = elem_type
    return value


def to_type_of(x: Tensor, like: Tensor) -> Tensor:
    """Returns *x* in the type of *like*."""
    if like.dtype.is_floating_point or like.dtype == torch.bool:
        return to_type(x, like.dtype)
    return to_integer(x, like.dtype)


def _bit_cast(node: Node) -> Value:
    elem_type = node.attr("to")
    node.require(elem_type in STORAGE and elem_type not in (*_PACKED, getattr(TensorProto, "FLOAT4E2M1", -1)),
                 f"bits as {type_name(elem_type)} have no torch counterpart")  # fmt: skip
    node.require(elem_type not in HALF and node[0].elem_type not in HALF, "the bits of 16-bit floats are not kept")
    return node.emit(reinterpret, node[0], STORAGE[elem_type])


def reinterpret(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the same bits as another type."""
    x = x.detach()
    return x.view(dtype) if x.dtype != torch.bool else x.view(torch.uint8).view(dtype)


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    registry.add("Cast", _cast, 6)
    registry.add("CastLike", _cast_like, 15)
    registry.add("BitCast", _bit_cast, 26)
