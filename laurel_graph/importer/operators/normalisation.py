"""Normalisation layers, with their frozen statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..builder import Value
from ..node import Node
from ..registry import Registry


def batch_norm(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, epsilon: float) -> Tensor:
    """Batch normalisation with the stored statistics."""
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def batch_norm_training(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, epsilon: float, momentum: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch normalisation with the batch's own statistics, and the running ones moved towards them."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    here = x.var(axes, unbiased=False)
    average = x.mean(axes)
    y = F.batch_norm(x, average, here, scale, bias, False, 0.0, epsilon)
    return y, mean * momentum + average * (1 - momentum), var * momentum + here * (1 - momentum)


def _batch_norm(node: Node) -> Value | list[Value]:
    node.require(node.attr("spatial", 1) == 1, "statistics per element (spatial = 0)")
    node.require(node.version >= 7 or node.attr("is_test", 0) == 1, "training statistics of an old operator set")
    epsilon = node.attr("epsilon", 1e-5)
    if node.attr("training_mode", 0):
        node.require(node.version >= 14, "training mode of an old operator set")
        return node.unpack(
            node.emit(batch_norm_training, *node.inputs[:5], epsilon, node.attr("momentum", 0.9)), node.output_count
        )
    node.require(node.output_count == 1, "the extra outputs of training mode")
    return node.emit(batch_norm, *node.inputs[:5], epsilon)


def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Normalises each channel of each sample."""
    return torch.group_norm(x, x.shape[1], scale, bias, epsilon)


def group_norm(x: Tensor, scale: Tensor, bias: Tensor, groups: int, epsilon: float, per_group: bool) -> Tensor:
    """Normalises groups of channels; scale and bias are per group (operator set 18) or per channel."""
    if per_group:
        repeat = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(repeat), bias.repeat_interleave(repeat)
    return torch.group_norm(x, groups, scale, bias, epsilon)


def _group_norm(node: Node) -> Value:
    per_group = node.version < 21
    epsilon = node.attr("epsilon", 1e-5)
    return node.emit(group_norm, node[0], node[1], node[2], node.attr("num_groups"), epsilon, per_group)


def layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None, axis: int, epsilon: float) -> Tensor:
    """Layer normalisation over the axes from *axis* on."""
    shape = x.shape[axis:]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return F.layer_norm(x, shape, scale, bias, epsilon)
    y = F.layer_norm(x, shape, None, None, epsilon) * scale
    return y if bias is None else y + bias


def layer_norm_statistics(x: Tensor, axis: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """The mean and the inverse standard deviation of layer normalisation."""
    axes = tuple(range(axis % x.dim(), x.dim()))
    mean = x.mean(axes, keepdim=True)
    return mean, torch.rsqrt((x - mean).square().mean(axes, keepdim=True) + epsilon)


def _layer_norm(node: Node) -> list[Value]:
    axis, epsilon = node.attr("axis", -1), node.attr("epsilon", 1e-5)
    outputs = [node.emit(layer_norm, node[0], node[1], node.get(2), axis, epsilon)]
    if node.output_count > 1:
        outputs += node.unpack(node.emit(layer_norm_statistics, node[0], axis, epsilon), 2)
    return outputs


def rms_norm(x: Tensor, scale: Tensor, axis: int, epsilon: float) -> Tensor:
    """x / sqrt(mean(x²) + ε) · scale over the axes from *axis* on."""
    axes = tuple(range(axis % x.dim(), x.dim()))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale


def _rms_norm(node: Node) -> Value:
    return node.emit(rms_norm, node[0], node[1], node.attr("axis", -1), node.attr("epsilon", 1e-5))


def lp_normalisation(x: Tensor, axis: int, p: int) -> Tensor:
    """x divided by its p-norm along *axis*; 0 stays 0."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm))


def local_response_norm(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """x / (bias + α/size · Σ x²)^β over *size* neighbouring channels."""
    flat = x.square().reshape(x.shape[0], 1, x.shape[1], -1)
    window = F.pad(flat, (0, 0, (size - 1) // 2, math.ceil((size - 1) / 2)))
    total = F.avg_pool2d(window, (size, 1), 1) * size
    return x / (bias + alpha / size * total.reshape(x.shape)) ** beta


def _local_response_norm(node: Node) -> Value:
    numbers: Sequence[Any] = [node.attr("alpha", 1e-4), node.attr("beta", 0.75), node.attr("bias", 1.0)]
    return node.emit(local_response_norm, node[0], node.attr("size"), *numbers)


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    add = registry.add
    add("BatchNormalization", _batch_norm)
    add(
        "InstanceNormalization",
        lambda node: node.emit(instance_norm, *node.inputs[:3], node.attr("epsilon", 1e-5)),
        6,
    )
    add("GroupNormalization", _group_norm, 18)
    add("LayerNormalization", _layer_norm, 17)
    add("RMSNormalization", _rms_norm, 23)
    add(
        "LpNormalization",
        lambda node: node.emit(lp_normalisation, node[0], node.attr("axis", -1), node.attr("p", 2)),
    )
    add("LRN", _local_response_norm)
