"""Mixtures of experts of ``com.microsoft``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..builder import Value
from ..node import Node
from ..registry import Registry
from .contrib import DOMAIN


class Experts(NamedTuple):
    """Attributes of MoE."""

    chosen: int
    activation: str
    normalised: bool
    interleaved: bool
    alpha: float
    beta: float
    limit: float | None


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "identity": torch.clone,
}


def _activated(x: Tensor, options: Experts) -> Tensor:
    if options.activation == "swiglu":
        gate, value = (x[..., ::2], x[..., 1::2]) if options.interleaved else x.chunk(2, -1)
        if options.limit is not None:
            gate, value = gate.clamp(max=options.limit), value.clamp(-options.limit, options.limit)
        return gate * torch.sigmoid(options.alpha * gate) * (value + options.beta)
    return _ACTIVATIONS[options.activation](x)


def mixture(
    x: Tensor, router: Tensor, first: Tensor, first_bias: Tensor | None, second: Tensor, second_bias: Tensor | None,
    options: Experts,
) -> Tensor:  # fmt: skip
    """The experts that a router chose for each token, weighted by its softmax.

    Args:
        x: ``(..., D)``.
        router: scores ``(tokens, experts)``.
        first: ``(experts, inner, D)``; with swiglu, gates and values are both in *inner*.
        first_bias: ``(experts, inner)``.
        second: ``(experts, D, hidden)``.
        second_bias: ``(experts, D)``.
        options: the attributes.
    """
    flat = x.reshape(-1, x.shape[-1])
    shares, picked = torch.softmax(router.reshape(len(flat), -1), -1).topk(options.chosen, -1)
    if options.normalised:
        shares = shares / shares.sum(-1, keepdim=True)
    y = torch.zeros_like(flat)
    for expert in range(first.shape[0]):
        token, rank = torch.nonzero(picked == expert, as_tuple=True)
        bias, last = (None if b is None else b[expert] for b in (first_bias, second_bias))
        hidden = _activated(F.linear(flat[token], first[expert], bias), options)
        part = F.linear(hidden, second[expert], last) * shares[token, rank].unsqueeze(-1)
        y = y.index_add(0, token, part)
    return y.reshape(x.shape)


def _mixture(node: Node) -> Value:
    kind = node.attr("activation_type", "relu")
    node.require(kind in (*_ACTIVATIONS, "swiglu"), f"the activation {kind!r}")
    node.require(len(node) <= 6 or not any(node.inputs[6:]), "a third matrix of the experts, or router weights")
    fusion = node.attr("swiglu_fusion", 0)
    node.require(kind != "swiglu" or fusion in (1, 2), "gates and values of swiglu in two matrices")
    node.require(not node.attr("use_sparse_mixer", 0), "the sparse mixer")
    options = Experts(
        node.attr("k", 1), kind, bool(node.attr("normalize_routing_weights", 0)), fusion == 1,
        node.attr("activation_alpha", 1.0), node.attr("activation_beta", 0.0), node.attr("swiglu_limit"),
    )  # fmt: skip
    return node.emit(mixture, node[0], node[1], node[2], node.get(3), node[4], node.get(5), options)


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    registry.add("MoE", _mixture, 1, 1, DOMAIN)
