"""Activations: element-wise non-linearities and the softmax family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..builder import Value
from ..node import Node, direct
from ..registry import Registry


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    """max(0, min(1, αx + β))."""
    return torch.clamp(alpha * x + beta, 0, 1)


def elu(x: Tensor, alpha: float) -> Tensor:
    """x for x > 0, else α(eˣ - 1)."""
    return F.elu(x, alpha)


def celu(x: Tensor, alpha: float) -> Tensor:
    """max(0, x) + min(0, α(exp(x/α) - 1))."""
    return F.celu(x, alpha)


def selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    """γ(x for x > 0, else α(eˣ - 1))."""
    return gamma * F.elu(x, alpha)


def shrink(x: Tensor, bias: float, lambd: float) -> Tensor:
    """x - bias above λ, x + bias below -λ, else 0."""
    wide = x.to(torch.float64) if not x.dtype.is_floating_point else x
    zero = torch.zeros((), dtype=wide.dtype, device=x.device)
    return torch.where(wide < -lambd, wide + bias, torch.where(wide > lambd, wide - bias, zero)).to(x.dtype)


def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """x where x > α, else 0."""
    return torch.where(x > alpha, x, torch.zeros((), dtype=x.dtype, device=x.device))


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """x for x ≥ 0, else slope·x; *slope* broadcasts."""
    return torch.where(x >= 0, x, slope * x)


def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    """x for x ≥ 0, else αx."""
    return F.leaky_relu(x, alpha)


def gelu(x: Tensor, approximate: str) -> Tensor:
    """xΦ(x), or its tanh approximation."""
    return F.gelu(x, approximate=approximate)


def swish(x: Tensor, alpha: float) -> Tensor:
    """x·σ(αx)."""
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


def softplus(x: Tensor) -> Tensor:
    """log(1 + eˣ), without the linear cut-off of torch."""
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype, device=x.device))


def softsign(x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return x / (1 + x.abs())


def flattened(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns *fn* over all axes from *axis* on at once, as the operator sets before 13 define it."""

    def call(x: Tensor, axis: int) -> Tensor:
        axis = axis % x.dim() if x.dim() else 0
        return fn(x.reshape(*x.shape[:axis], -1), -1).reshape(x.shape)

    call.__name__ = getattr(fn, "__name__", "flattened")
    return call


def hardmax(x: Tensor, axis: int) -> Tensor:
    """1 at the first maximum along *axis*, else 0."""
    first = x.argmax(axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1)


def softmax(x: Tensor, axis: int) -> Tensor:
    """Softmax along *axis*."""
    return torch.softmax(x, axis)


def log_softmax(x: Tensor, axis: int) -> Tensor:
    """Log of the softmax along *axis*."""
    return torch.log_softmax(x, axis)


def _over_axis(fn: Callable[..., Tensor]) -> Callable[[Node], Value]:
    whole = flattened(fn)

    def handler(node: Node) -> Value:
        if node.version >= 13:
            return node.emit(fn, node[0], node.attr("axis", -1))
        axis = node.attr("axis", 1)
        shape = node[0].shape
        last = axis == -1 or (shape is not None and axis == len(shape) - 1)
        return node.emit(fn, node[0], axis) if last else node.emit(whole, node[0], axis)

    return handler


def _with(fn: Callable[..., Tensor], **defaults: Any) -> Callable[[Node], Value]:
    """Returns the handler of a function whose options are attributes of the same names, with these defaults."""

    def handler(node: Node) -> Value:
        return node.emit(fn, node[0], *(node.attr(name, value) for name, value in defaults.items()))

    return handler


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    add = registry.add
    add("Relu", direct(torch.relu))
    add("Sigmoid", direct(torch.sigmoid))
    add("Tanh", direct(torch.tanh))
    add("Softplus", direct(softplus))
    add("Softsign", direct(softsign))
    add("Mish", direct(F.mish))
    add("HardSwish", direct(F.hardswish))
    add("LeakyRelu", _with(leaky_relu, alpha=0.01))
    add("ThresholdedRelu", _with(thresholded_relu, alpha=1.0))
    add("Elu", _with(elu, alpha=1.0))
    add("Celu", _with(celu, alpha=1.0))
    add("Selu", _with(selu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875))
    add("HardSigmoid", _with(hard_sigmoid, alpha=0.2, beta=0.5))
    add("Shrink", _with(shrink, bias=0.0, lambd=0.5))
    add("Gelu", _with(gelu, approximate="none"))
    add("Swish", _with(swish, alpha=1.0))
    add("PRelu", direct(prelu), 7)
    add("Softmax", _over_axis(softmax))
    add("LogSoftmax", _over_axis(log_softmax))
    add("Hardmax", _over_axis(hardmax))
