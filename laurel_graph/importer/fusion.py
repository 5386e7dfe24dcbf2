"""Decomposed layers as one torch call each, where the result is the same function: speed and memory of the original.

Exporters write a linear layer as a product and a sum, GELU as five operators, layer normalisation as nine, attention
as products around a softmax. Their torch counterparts are faster and keep fewer values for the backward pass. A ReLU
behind a LAuReL residual becomes part of its pass over memory. A match needs every inner value to be used there alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..torch_residual.module import LaurelResidual
from .operators.activation import softmax
from .operators.arithmetic import divide, known_power


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x @ weight + bias for ``x (..., in)``, ``weight (in, out)``, ``bias (out,)``."""
    return F.linear(x, weight.t(), bias)


def normalise(x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """Layer normalisation over the last axis."""
    return F.layer_norm(x, weight.shape, weight, bias, epsilon)


def attend(q: Tensor, kt: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale·q @ kt + mask) @ v for ``q (..., S, H)``, ``kt (..., H, T)``, ``v (..., T, H)``."""
    scores_shape = (*q.shape[:-1], kt.shape[-1])
    fits = q.dim() == 4 and q.shape[:2] == kt.shape[:2] == v.shape[:2]
    if fits and mask is not None:
        fits = mask.dim() <= 4 and all(
            m in (1, s) for m, s in zip(reversed(mask.shape), reversed(scores_shape), strict=False)
        )
    if not fits:
        scores = q @ kt * scale
        return torch.softmax(scores if mask is None else scores + mask, -1) @ v
    if mask is not None and mask.dim() not in (2, 4):
        mask = mask.reshape((1,) * (4 - mask.dim()) + mask.shape)
    return F.scaled_dot_product_attention(q, kt.transpose(-1, -2), v, attn_mask=mask, scale=scale)


Match = tuple[fx.Node, Callable[..., Any], tuple[Any, ...]]
"""The last node of what is replaced, and the call that takes its place."""


class _Matcher:
    """Looks at the nodes of one graph; a method returns ``None`` where there is no match."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root

    def tensor(self, node: Any) -> Tensor | None:
        """The tensor that a ``get_attr`` node reads."""
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        found: Any = self.root
        for part in str(node.target).split("."):
            found = getattr(found, part)
        return found if isinstance(found, Tensor) else None

    def scalar(self, node: Any) -> float | None:
        """The value of a frozen constant of one element."""
        if isinstance(node, (int, float)):
            return float(node)
        tensor = self.tensor(node)
        if tensor is None or tensor.numel() != 1 or tensor.requires_grad or not tensor.dtype.is_floating_point:
            return None
        return float(tensor)

    @staticmethod
    def calls(node: Any, *functions: Callable[..., Any]) -> bool:
        """Whether *node* calls one of the functions."""
        return isinstance(node, fx.Node) and node.op == "call_function" and node.target in functions

    def inner(self, node: Any, *functions: Callable[..., Any]) -> bool:
        """Whether *node* calls one of the functions and has one user."""
        return self.calls(node, *functions) and len(node.users) == 1

    @staticmethod
    def user(node: Any) -> Any:
        """The only user of a node."""
        return next(iter(node.users)) if len(node.users) == 1 else None

    def other(self, node: Any, known: Any) -> Any:
        """The other operand of a commutative call."""
        return node.args[1] if node.args[0] is known else node.args[0]

    def with_scalar(self, node: Any, function: Callable[..., Any]) -> tuple[Any, float] | None:
        """The operand and the number of ``operand ∘ number``; for a product or sum also the other way round."""
        if not self.calls(node, function):
            return None
        a, b = node.args[:2]
        if (value := self.scalar(b)) is not None:
            return a, value
        if function is not divide and (value := self.scalar(a)) is not None:
            return b, value
        return None

    def scaled(self, node: Any) -> tuple[Any, float]:
        """What is multiplied or divided by a number, and the factor; the node itself and 1 without one."""
        if isinstance(node, fx.Node) and len(node.users) == 1:
            if (found := self.with_scalar(node, torch.mul)) is not None:
                return found
            if (found := self.with_scalar(node, divide)) is not None and found[1] != 0:
                return found[0], 1 / found[1]
        return node, 1.0

    # ---- patterns ---------------------------------------------------------------------------------------------

    def gelu(self, erf: Any) -> Match | None:
        """x·(1 + erf(x/√2))·½ in any order of the products."""
        if not self.inner(erf, torch.erf):
            return None
        x, factor = self.scaled(erf.args[0])
        if not math.isclose(factor, math.sqrt(0.5), rel_tol=1e-5):
            return None
        plus = self.user(erf)
        one = self.with_scalar(plus, torch.add) if plus is not None else None
        if plus is None or one is None or one != (erf, 1.0) or len(plus.users) != 1:
            return None
        node, value, half_seen = plus, x, False
        for _ in range(2):
            product = self.user(node)
            if not self.calls(product, torch.mul) or product is None:
                return None
            operand = self.other(product, node)
            if self.scalar(operand) == 0.5 and not half_seen:
                half_seen = True
            elif operand is x and value is x:
                value = None
            elif isinstance(operand, fx.Node) and self.scaled(operand) == (x, 0.5) and not half_seen and value is x:
                return product, F.gelu, (x,)
            else:
                return None
            node = product
            if half_seen and value is None:
                return product, F.gelu, (x,)
        return None

    def linear(self, product: Any) -> Match | None:
        """x @ W + b with a matrix and a vector that are known."""
        total = self.user(product)
        if not self.calls(product, torch.matmul) or total is None or not self.calls(total, torch.add):
            return None
        weight, bias = self.tensor(product.args[1]), self.tensor(self.other(total, product))
        if weight is None or bias is None or weight.dim() != 2 or bias.dim() != 1 or total.kwargs:
            return None
        if bias.shape[0] != weight.shape[1] or bias.dtype != weight.dtype or not weight.dtype.is_floating_point:
            return None
        return total, affine, (product.args[0], product.args[1], self.other(total, product))

    def attention(self, weights: Any) -> Match | None:
        """softmax(scores + mask) @ v."""
        if not self.inner(weights, softmax) or weights.args[1] not in (-1, 3):
            return None
        result = self.user(weights)
        if result is None or not self.calls(result, torch.matmul) or result.args[0] is not weights:
            return None
        scores, mask = weights.args[0], None
        if self.inner(scores, torch.add):
            assert isinstance(scores, fx.Node)
            a, b = scores.args[:2]
            first, second = (self.inner(self.scaled(t)[0], torch.matmul) for t in (a, b))
            if first == second:
                return None
            scores, mask = (a, b) if first else (b, a)
        product, scale = self.scaled(scores)
        if not self.inner(product, torch.matmul) or self.tensor(product.args[1]) is not None:
            return None
        (q, q_scale), (kt, k_scale) = self.scaled(product.args[0]), self.scaled(product.args[1])
        if mask is not None and (t := self.tensor(mask)) is not None and t.requires_grad:
            return None
        return result, attend, (q, kt, result.args[1], mask, scale * q_scale * k_scale)

    def layer_norm(self, root: Any) -> Match | None:
        """(x - mean)/sqrt(mean((x - mean)²) + ε)·w + b over the last axis."""
        if not self.inner(root, torch.sqrt):
            return None
        plus = self.with_scalar(root.args[0], torch.add)
        if plus is None or not self._last_mean(plus[0]):
            return None
        squared = plus[0].args[0]
        by_power = self.calls(squared, known_power) and squared.args[1] == 2
        by_product = self.calls(squared, torch.mul) and squared.args[0] is squared.args[1]
        if not (by_power or by_product):
            return None
        centred = squared.args[0]
        ratio = self.user(root)
        if ratio is None or not self.calls(ratio, divide) or ratio.args[1] is not root:
            return None
        top = ratio.args[0]
        for node in (centred, top):
            if not self.calls(node, torch.sub) or not self._last_mean(node.args[1]):
                return None
            if node.args[1].args[0] is not node.args[0] or node.args[0] is not centred.args[0]:
                return None
        scaled = self.user(ratio)
        if scaled is None or not self.calls(scaled, torch.mul):
            return None
        weight = self.other(scaled, ratio)
        size = self.tensor(weight)
        if size is None or size.dim() != 1 or size.shape[0] == 1:
            return None
        shifted = self.user(scaled)
        if shifted is not None and self.calls(shifted, torch.add):
            bias = self.other(shifted, scaled)
            found = self.tensor(bias)
            if found is not None and found.shape == size.shape:
                return shifted, normalise, (centred.args[0], weight, bias, plus[1])
        return scaled, normalise, (centred.args[0], weight, None, plus[1])

    def residual(self, relu: Any) -> fx.Node | None:
        """The call of a LAuReL residual that the ReLU alone reads."""
        call = relu.args[0]
        if not isinstance(call, fx.Node) or call.op != "call_module" or len(call.users) != 1 or "relu" in call.kwargs:
            return None
        return call if isinstance(self.root.get_submodule(str(call.target)), LaurelResidual) else None

    def _last_mean(self, node: Any) -> bool:
        return self.calls(node, torch.mean) and node.args[1] == (-1,) and node.args[2] is True


def fuse(root: nn.Module, graph: fx.Graph) -> int:
    """Replaces what matches in *graph*, in place, and returns how many layers were put together.

    Args:
        root: the module that holds the tensors of the graph.
        graph: a graph with its output node.
    """
    matcher = _Matcher(root)
    patterns: dict[Any, Callable[[fx.Node], Any]] = {
        torch.erf: matcher.gelu,
        torch.sqrt: matcher.layer_norm,
        torch.matmul: matcher.linear,
        softmax: matcher.attention,
    }
    count = 0
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in patterns or not node.users:
            continue
        found = patterns[node.target](node)
        if found is None:
            continue
        last, function, args = found
        with graph.inserting_after(last):
            fused = graph.call_function(function, args)
        fused.meta = dict(last.meta)
        last.replace_all_uses_with(fused)
        _erase_unused(graph, last)
        count += 1
    return count + _fuse_relus(matcher, graph)


def _fuse_relus(matcher: _Matcher, graph: fx.Graph) -> int:
    """Makes every ReLU that alone reads a LAuReL residual part of the residual's call."""
    count = 0
    for node in list(graph.nodes):
        call = matcher.residual(node) if matcher.calls(node, torch.relu) else None
        if call is None:
            continue
        call.kwargs = {**call.kwargs, "relu": True}
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        graph.erase_node(node)
        count += 1
    return count


def _erase_unused(graph: fx.Graph, node: fx.Node) -> None:
    """Erases *node* and what only it needed."""
    if node.users or node.op in ("placeholder", "output"):
        return
    inputs = node.all_input_nodes
    graph.erase_node(node)
    for one in inputs:
        if not getattr(one, "_erased", False):
            _erase_unused(graph, one)
