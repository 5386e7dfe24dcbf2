"""Element-wise arithmetic, comparison, logic and bits."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..builder import Value
from ..node import Node, direct
from ..registry import Registry

_WIDE = (torch.uint16, torch.uint32, torch.uint64)
"""Types for which torch has storage but hardly any arithmetic."""


def widened(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns *fn* computing unsigned 16- and 32-bit integers in int64, with the result wrapped back."""

    def call(*inputs: Tensor, **options: Any) -> Tensor:
        dtype = inputs[0].dtype
        if dtype not in _WIDE:
            return fn(*inputs, **options)
        out = fn(*(x.to(torch.int64) for x in inputs), **options)
        return out.to(dtype) if out.dtype == torch.int64 else out

    call.__name__ = getattr(fn, "__name__", "call")
    return call


def order(x: Tensor) -> Tensor:
    """Returns integers that compare like *x*; unsigned 64-bit ones are shifted to the signed range."""
    if x.dtype == torch.uint64:
        return x.view(torch.int64) ^ torch.iinfo(torch.int64).min
    return x.to(torch.int64) if x.dtype in _WIDE else x


def compared(fn: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns the comparison *fn* for every element type."""

    def call(a: Tensor, b: Tensor) -> Tensor:
        return fn(order(a), order(b)) if a.dtype in _WIDE else fn(a, b)

    call.__name__ = fn.__name__
    return call


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Division; integers are truncated towards zero."""
    if a.dtype.is_floating_point:
        return a / b
    if a.dtype == torch.uint64:
        quotient = a.cpu().numpy() // b.cpu().numpy()
        return torch.from_numpy(quotient).to(a.device)
    if a.dtype in _WIDE:
        return torch.div(a.to(torch.int64), b.to(torch.int64), rounding_mode="trunc").to(a.dtype)
    return torch.div(a, b, rounding_mode="trunc")


def power(x: Tensor, y: Tensor) -> Tensor:
    """x**y in the type of x."""
    if x.dtype == y.dtype or x.dtype.is_floating_point:
        return torch.pow(x, y.to(x.dtype) if y.dtype in _WIDE else y).to(x.dtype)
    exact = y.to(torch.float64) if y.dtype.is_floating_point else y.to(torch.int64)
    return torch.pow(x.to(torch.int64) if x.dtype != torch.int64 else x, exact).to(x.dtype)


def known_power(x: Tensor, exponent: float) -> Tensor:
    """x to a power that is known, in the type of x: products are cheaper than pow and as exact."""
    return torch.pow(x, exponent) if x.dtype.is_floating_point else power(x, torch.tensor(exponent))


def _pow(node: Node) -> Value:
    exponent = node.const(1)
    if exponent is not None and exponent.dim() == 0 and exponent.dtype.is_floating_point:
        return node.emit(known_power, node[0], float(exponent))
    return node.emit(power, *node.inputs)


def _arithmetic(fn: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Node], Value]:
    """Handler of +, -, *: torch's own function for floats, the widened one where the type may be unsigned."""
    wide = widened(fn)

    def handler(node: Node) -> Value:
        known = {v.elem_type for v in node.inputs if v is not None}
        plain = known & {1, 3, 6, 7, 10, 11, 16, 2, 5}
        return node.emit(fn if plain else wide, *node.inputs)

    return handler


def mod(a: Tensor, b: Tensor) -> Tensor:
    """Remainder with the sign of the divisor."""
    if a.dtype == torch.uint64:
        return torch.from_numpy(a.cpu().numpy() % b.cpu().numpy()).to(a.device)
    return widened(torch.remainder)(a, b)


def fmod(a: Tensor, b: Tensor) -> Tensor:
    """Remainder with the sign of the dividend."""
    if a.dtype == torch.uint64:
        return mod(a, b)
    return widened(torch.fmod)(a, b)


def _mod(node: Node) -> Value:
    return node.emit(fmod if node.attr("fmod", 0) else mod, *node.inputs)


def _variadic(fn: Callable[..., Tensor]) -> Callable[[Node], Value]:
    def handler(node: Node) -> Value:
        result = node[0]
        if len(node) == 1:
            return node.emit(identity, result)
        for i in range(1, len(node)):
            result = node.emit(fn, result, node[i])
        return result

    return handler


def identity(x: Any) -> Any:
    """Returns *x*."""
    return x


def maximum(a: Tensor, b: Tensor) -> Tensor:
    """Element-wise maximum; NaN wins."""
    return torch.where(order(a) >= order(b), a, b) if a.dtype in _WIDE else torch.maximum(a, b)


def minimum(a: Tensor, b: Tensor) -> Tensor:
    """Element-wise minimum; NaN wins."""
    return torch.where(order(a) <= order(b), a, b) if a.dtype in _WIDE else torch.minimum(a, b)


def mean(*inputs: Tensor) -> Tensor:
    """The mean of several tensors."""
    total = inputs[0]
    for x in inputs[1:]:
        total = total + x
    return total / len(inputs)


def shift(x: Tensor, by: Tensor, direction: str) -> Tensor:
    """Bit shift, arithmetic for signed types; by less than 0 or by the width or more only the sign is left."""
    width = x.element_size() * 8
    signed = x.dtype in (torch.int8, torch.int16, torch.int32, torch.int64)
    wide = x.view(torch.int64) if x.dtype == torch.uint64 else x.to(torch.int64)
    by = by.view(torch.int64) if by.dtype == torch.uint64 else by.to(torch.int64)
    beyond = (by < 0) | (by >= width)
    steps = by.clamp(0, 63)
    if direction == "LEFT":
        out = torch.where(beyond, 0, wide << steps)
    elif signed:
        out = torch.where(beyond, wide >> 63, wide >> steps)
    elif width == 64:
        kept = (1 << (64 - steps).clamp(max=63)) - 1
        out = torch.where(beyond, 0, torch.where(steps == 0, wide, (wide >> steps) & kept))
    else:
        out = torch.where(beyond, 0, wide >> steps)
    return out.view(torch.uint64) if x.dtype == torch.uint64 else out.to(x.dtype)


def _bit_shift(node: Node) -> Value:
    return node.emit(shift, node[0], node[1], node.attr("direction"))


def bits(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns a bitwise function that works on the unsigned types too."""

    def call(*inputs: Tensor) -> Tensor:
        signed = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
        dtype = inputs[0].dtype
        if dtype not in signed:
            return fn(*inputs)
        return fn(*(x.view(signed[dtype]) for x in inputs)).view(dtype)

    call.__name__ = fn.__name__
    return call


def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1."""
    return (x != 0).to(x.dtype) if x.dtype in (torch.uint8, *_WIDE) else torch.sign(x)


def absolute(x: Tensor) -> Tensor:
    """|x|; unsigned integers as they are."""
    return x if x.dtype in (torch.uint8, *_WIDE) else torch.abs(x)


def clip(x: Tensor, low: Tensor | float | None = None, high: Tensor | float | None = None) -> Tensor:
    """min(max(x, low), high): where low > high, high wins."""
    if x.dtype in _WIDE:
        x = x if low is None else maximum(x, torch.as_tensor(low, dtype=x.dtype))
        return x if high is None else minimum(x, torch.as_tensor(high, dtype=x.dtype))
    if low is None and high is None:
        return x
    return torch.clamp(x, low, high)  # type: ignore[arg-type]


def _clip(node: Node) -> Value:
    if node.version < 11:
        return node.emit(clip, node[0], node.attr("min"), node.attr("max"))
    bounds: list[Any] = []
    for i in (1, 2):
        known = node.const(i)
        simple = known is not None and known.dtype.is_floating_point
        bounds.append(known.item() if simple else node.get(i))
    return node.emit(clip, node[0], *bounds)


def is_inf(x: Tensor, negative: bool, positive: bool) -> Tensor:
    """Where x is infinite with one of the signs asked for."""
    x = x.float() if x.dtype.itemsize == 1 else x
    result = torch.isinf(x) if negative and positive else torch.zeros_like(x, dtype=torch.bool)
    if positive and not negative:
        result = x == torch.inf
    if negative and not positive:
        result = x == -torch.inf
    return result


def is_nan(x: Tensor) -> Tensor:
    """Where x is not a number."""
    return torch.isnan(x.float() if x.dtype.itemsize == 1 else x)


def _is_inf(node: Node) -> Value:
    return node.emit(is_inf, node[0], bool(node.attr("detect_negative", 1)), bool(node.attr("detect_positive", 1)))


def _identity(node: Node) -> Value:
    return node.emit(identity, node[0]) if node[0].is_const else node[0]


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    add = registry.add
    add("Add", _arithmetic(torch.add), 7)
    add("Sub", _arithmetic(torch.sub), 7)
    add("Mul", _arithmetic(torch.mul), 7)
    add("Div", direct(divide), 7)
    add("Pow", _pow, 7)
    add("Mod", _mod, 10)
    add("Neg", direct(torch.neg))
    add("Abs", direct(absolute))
    add("Sign", direct(sign))
    add("Reciprocal", direct(torch.reciprocal))
    add("Sqrt", direct(torch.sqrt))
    unary: dict[str, Callable[[Tensor], Tensor]] = {
        "Ceil": torch.ceil, "Floor": torch.floor, "Round": torch.round, "Exp": torch.exp, "Log": torch.log,
        "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos,
        "Atan": torch.atan, "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh,
        "Atanh": torch.atanh, "Erf": torch.erf, "Det": torch.det, "IsNaN": is_nan,
    }  # fmt: skip
    for op, fn in unary.items():
        add(op, direct(fn))
    add("IsInf", _is_inf)
    add("Sum", _variadic(torch.add), 6)
    add("Max", _variadic(maximum), 6)
    add("Min", _variadic(minimum), 6)
    add("Mean", direct(mean), 6)
    add("Clip", _clip)
    for op, comparison in {
        "Equal": torch.eq, "Greater": torch.gt, "Less": torch.lt, "GreaterOrEqual": torch.ge, "LessOrEqual": torch.le,
    }.items():  # fmt: skip
        add(op, direct(compared(comparison)), 7)
    for op, logic in {"And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor}.items():
        add(op, direct(logic), 7)
    add("Not", direct(torch.logical_not))
    bitwise: dict[str, Callable[..., Tensor]] = {
        "And": operator.and_, "Or": operator.or_, "Xor": operator.xor, "Not": operator.invert,
    }  # fmt: skip
    for op, bitwise_fn in bitwise.items():
        add(f"Bitwise{op}", direct(bits(bitwise_fn)))
    add("BitShift", _bit_shift)
    add("Identity", _identity)
