"""Losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..builder import Value
from ..node import Node
from ..registry import Registry


def negative_log_likelihood(
    log_probabilities: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignored: int | None
) -> Tensor:
    """Minus the (weighted) log probability of each target class.

    ``log_probabilities`` is (N, C, ...), ``target`` (N, ...), ``weight`` (C,).
    """
    target = target.to(torch.int64)
    kept = torch.ones_like(target, dtype=torch.bool) if ignored is None else target != ignored
    classes = torch.where(kept, target, 0)
    picked = -log_probabilities.gather(1, classes.unsqueeze(1)).squeeze(1)
    weights = kept.to(picked.dtype) if weight is None else weight[classes] * kept
    losses = torch.where(kept, picked * weights, torch.zeros_like(picked))
    if reduction == "none":
        return losses
    total = losses.sum()
    return total / weights.sum() if reduction == "mean" else total


def _nll(node: Node) -> Value:
    options: list[Any] = [node.attr("reduction", "mean"), node.attr("ignore_index")]
    return node.emit(negative_log_likelihood, node[0], node[1], node.get(2), *options)


def _cross_entropy(node: Node) -> list[Value]:
    log_probabilities = node.emit(torch.log_softmax, node[0], 1)
    options: list[Any] = [node.attr("reduction", "mean"), node.attr("ignore_index")]
    loss = node.emit(negative_log_likelihood, log_probabilities, node[1], node.get(2), *options)
    return [loss, log_probabilities]


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    registry.add("NegativeLogLikelihoodLoss", _nll, 12)
    registry.add("SoftmaxCrossEntropyLoss", _cross_entropy, 12)
