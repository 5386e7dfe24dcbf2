"""Operators of ONNX Runtime's own domain ``com.microsoft``: layers, activations and products.

They come with exported and ORT-optimised transformers. Attention is in :mod:`.contrib_attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F

from ...onnx_model.hidden_adds import HIDDEN_ADDS, at
from ..builder import Value
from ..node import Node
from ..registry import Registry
from .activation import hard_sigmoid
from .convolution import conv
from .linear import gemm
from .normalisation import layer_norm, layer_norm_statistics, rms_norm
from .quantisation import centred, dynamic_quantise

DOMAIN = "com.microsoft"


def summed(*parts: Tensor | None) -> Tensor:
    """The sum of what is there."""
    total: Tensor | None = None
    for part in parts:
        if part is not None:
            total = part if total is None else total + part
    assert total is not None
    return total


def _skip_norm(node: Node) -> list[Value]:
    form = HIDDEN_ADDS[node.op]
    epsilon, gamma = node.attr("epsilon", form.epsilon), node[form.scale]
    node.require(
        not any(at(node.proto.output, place) for place in form.statistics), "the mean and deviation as outputs"
    )
    bias = None if form.bias is None else node.get(form.bias)
    total = node.emit(summed, *(node[place] for place in form.addends), bias)
    if form.norm == "rms":
        normed = node.emit(rms_norm, total, gamma, -1, epsilon)
    else:
        normed = node.emit(
            layer_norm, total, gamma, None if form.offset is None else node.get(form.offset), -1, epsilon
        )
    return [normed, *[total] * (node.output_count - 1)]


def _simplified_norm(node: Node) -> list[Value]:
    axis, epsilon = node.attr("axis", -1), node.attr("epsilon", 1e-5)
    node.require(node.output_count == 1, "the inverse deviation as an output")
    return [node.emit(rms_norm, node[0], node[1], axis, epsilon)]


def _layer_norm(node: Node) -> list[Value]:
    axis, epsilon = node.attr("axis", -1), node.attr("epsilon", 1e-5)
    outputs = [node.emit(layer_norm, node[0], node[1], node.get(2), axis, epsilon)]
    if node.output_count > 1:
        outputs += node.unpack(node.emit(layer_norm_statistics, node[0], axis, epsilon), 2)
    return outputs


def embed_layer_norm(
    ids: Tensor, segments: Tensor | None, words: Tensor, places: Tensor, kinds: Tensor | None, gamma: Tensor,
    beta: Tensor, mask: Tensor | None, positions: Tensor | None, epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Word + position (+ segment) embeddings, normalised; the number of unmasked tokens; the sum before the norm."""
    total = F.embedding(ids.to(torch.int64), words)
    index = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0) if positions is None else positions
    total = total + F.embedding(index.to(torch.int64), places)
    if segments is not None and kinds is not None:
        total = total + F.embedding(segments.to(torch.int64), kinds)
    counts = torch.zeros(ids.shape[0], dtype=torch.int32, device=ids.device)
    counts = counts if mask is None else mask.sum(1).to(torch.int32)
    return F.layer_norm(total, total.shape[-1:], gamma, beta, epsilon), counts, total


def _embed_layer_norm(node: Node) -> list[Value]:
    inputs = [node.get(i) for i in range(9)]
    parts = node.unpack(node.emit(embed_layer_norm, *inputs, node.attr("epsilon", 1e-12)), 3)
    return parts


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias)."""
    return F.gelu(x + bias)


def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The tanh approximation of gelu(x + bias)."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def quick_gelu(x: Tensor, alpha: float) -> Tensor:
    """x·σ(αx)."""
    return x * torch.sigmoid(alpha * x)


def bias_split_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """The first half of x + bias times the gelu of the second."""
    value, gate = (x + bias).chunk(2, -1)
    return value * F.gelu(gate)


def fused_matmul(a: Tensor, b: Tensor, alpha: float, transposed: tuple[bool, bool], batch: tuple[bool, bool]) -> Tensor:
    """α·op(a) @ op(b), the operands transposed in their last two axes and (*batch*) with the first axis moved."""

    def prepared(x: Tensor, swap: bool, move: bool) -> Tensor:
        x = x.movedim(0, -2) if move else x
        return x.transpose(-1, -2) if swap and x.dim() > 1 else x

    y = torch.matmul(prepared(a, transposed[0], batch[0]), prepared(b, transposed[1], batch[1]))
    return y if alpha == 1 else y * alpha


def _fused_matmul(node: Node) -> Value:
    transposed = (bool(node.attr("transA", 0)), bool(node.attr("transB", 0)))
    batch = (bool(node.attr("transBatchA", 0)), bool(node.attr("transBatchB", 0)))
    node.require(not any(batch), "transposed batch axes")
    return node.emit(fused_matmul, node[0], node[1], node.attr("alpha", 1.0), transposed, batch)


def activated(x: Tensor, name: str, params: Sequence[float]) -> Tensor:
    """The activation that ONNX Runtime fused into the operator before it."""
    if name == "Clip":
        return x.clamp(params[0], params[1])
    if name == "LeakyRelu":
        return F.leaky_relu(x, params[0])
    if name == "HardSigmoid":
        return hard_sigmoid(x, params[0], params[1])
    return {"Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "": _same}[name](x)


def _same(x: Tensor) -> Tensor:
    return x


_ACTIVATIONS = ("", "Relu", "Sigmoid", "Tanh", "Clip", "LeakyRelu", "HardSigmoid")


def _fused_conv(node: Node) -> Value:
    name, params = node.attr("activation", ""), list(node.attr("activation_params", []))
    node.require(name in _ACTIVATIONS, f"the fused activation {name!r}")
    options: list[Any] = [node.attr("auto_pad", "NOTSET"), node.attr("pads", []), node.attr("strides")]
    y = node.emit(conv, node[0], node[1], node.get(2), *options, node.attr("dilations"), node.attr("group", 1))
    if node.has(3):
        y = node.emit(torch.add, y, node[3])
    return node.emit(activated, y, name, params)


def _fused_gemm(node: Node) -> Value:
    name = node.attr("activation", "")
    node.require(name in _ACTIVATIONS, f"the fused activation {name!r}")
    params = [node.attr(key) for key in ("activation_alpha", "activation_beta") if key in node.attributes]
    options: list[Any] = [node.attr("alpha", 1.0), node.attr("beta", 1.0)]
    options += [bool(node.attr("transA", 0)), bool(node.attr("transB", 0))]
    return node.emit(activated, node.emit(gemm, node[0], node[1], node.get(2), *options), name, params)


def bias_softmax(x: Tensor, bias: Tensor, axis: int) -> Tensor:
    """softmax(x + bias) over the axes from *axis* on."""
    axis = axis % x.dim()
    total = x + bias
    return torch.softmax(total.reshape(*x.shape[:axis], -1), -1).reshape(x.shape)


def _bias_softmax(node: Node) -> Value:
    node.require(bool(node.attr("is_inner_broadcast", 1)), "an outer broadcast of the bias")
    return node.emit(bias_softmax, node[0], node[1], node.attr("axis", 1))


def unpack_weights(b: Tensor, scales: Tensor, zeros: Tensor | None, rows: int, columns: int, bits: int, block: int
                   ) -> Tensor:  # fmt: skip
    """The float weights ``(rows, columns)`` of MatMulNBits: blocks of *bits*-bit integers, scales and zero points."""
    blocks = -(-columns // block)

    def unpacked(packed: Tensor, count: int) -> Tensor:
        whole = packed.reshape(rows, -1)  # bytes all along: at a quarter of the memory that integers would take
        per = 8 // bits
        parts = torch.stack([(whole >> (bits * i)) & (2**bits - 1) for i in range(per)], -1)
        return parts.reshape(rows, -1)[:, :count]

    values = unpacked(b, blocks * block).reshape(rows, blocks, block).to(scales.dtype)
    scale = scales.reshape(rows, blocks, 1)
    if zeros is None:
        zero: Tensor | float = float(2 ** (bits - 1))
    elif zeros.dtype == torch.uint8:
        zero = unpacked(zeros, blocks).reshape(rows, blocks, 1).to(scales.dtype)
    else:
        zero = zeros.reshape(rows, blocks, 1)
    return values.sub_(zero).mul_(scale).reshape(rows, -1)[:, :columns]


class _Packed(torch.autograd.Function):
    """x times frozen weights that stay packed: unpacked when they are used, forward and backward, and not kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, b: Tensor, scales: Tensor, zeros: Tensor | None, sizes: tuple[int, int, int, int]
    ) -> Tensor:
        """x (..., K) to (..., N)."""
        ctx.save_for_backward(b, scales, zeros)
        ctx.sizes = sizes
        return F.linear(x, unpack_weights(b, scales, zeros, *sizes).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of x; there is none of the weights."""
        b, scales, zeros = ctx.saved_tensors
        weight = unpack_weights(b, scales, zeros, *ctx.sizes)
        return gradients[0] @ weight.to(gradients[0].dtype), None, None, None, None


def packed_linear(
    x: Tensor, b: Tensor, scales: Tensor, zeros: Tensor | None, bias: Tensor | None, rows: int, columns: int,
    bits: int, block: int,
) -> Tensor:  # fmt: skip
    """x times the packed weights of MatMulNBits, which take no more memory than in the file, plus a bias."""
    if any(part is not None and part.requires_grad for part in (scales, zeros)):
        y = F.linear(x, unpack_weights(b, scales, zeros, rows, columns, bits, block))
    else:
        y = _Packed.apply(x, b, scales, zeros, (rows, columns, bits, block))  # type: ignore[no-untyped-call]
    return y if bias is None else y + bias


def _matmul_nbits(node: Node) -> Value:
    bits = node.attr("bits", 4)
    node.require(bits in (2, 4, 8), f"{bits}-bit weights")
    node.require(not node.has(4), "reordered weights (g_idx)")
    sizes = (node.attr("N"), node.attr("K"), bits, node.attr("block_size"))
    return node.emit(packed_linear, node[0], node[1], node[2], node.get(3), node.get(5), *sizes)


def gather_blocks(data: Tensor, ids: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, block: int) -> Tensor:
    """Rows of a table ``(R, packed)`` of *bits*-bit integers in blocks, unpacked when they are picked."""
    rows = ids.reshape(-1).to(torch.int64)
    width = data.shape[1] * (8 // bits)
    picked = unpack_weights(
        data[rows], scales[rows], None if zeros is None else zeros[rows], len(rows), width, bits, block
    )
    return picked.reshape(*ids.shape, width)


def _gather_blocks(node: Node) -> Value:
    bits, shape = node.attr("bits", 4), node[0].shape
    shape = tuple(node[0].const.shape) if node[0].is_const else shape
    packed = node[0].const.dtype == torch.uint8 if node[0].is_const else node[0].elem_type == TensorProto.UINT8
    node.require(packed and bits in (4, 8), "a table that is not packed in bytes of 4 or 8 bits")
    node.require(shape is not None and len(shape) == 2, "a table that is no matrix")
    node.require(node.attr("gather_axis", 0) == 0, "picking along another axis than the first")
    node.require(node.attr("quantize_axis", 1) in (1, -1), "blocks along another axis than the last")
    return node.emit(gather_blocks, node[0], node[1], node[2], node.get(3), bits, node.attr("block_size", 128))


def dynamic_quantize_matmul(a: Tensor, b: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None) -> Tensor:
    """a, quantised by its own range, times quantised weights; the gradient passes the rounding of a."""
    steps, a_scale, a_zero = dynamic_quantise(a)
    exact = centred(steps, a_zero, -2) @ centred(b, zero, -1)
    y = exact.to(a.dtype) * (a_scale * scale)
    return y if bias is None else y + bias


def _dynamic_quantize_matmul(node: Node) -> Value:
    return node.emit(dynamic_quantize_matmul, node[0], node[1], node[2], node.get(3), node.get(4))


def matmul_integer_to_float(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, a_zero: Tensor | None, b_zero: Tensor | None,
    bias: Tensor | None,
) -> Tensor:  # fmt: skip
    """(a - a_zero) @ (b - b_zero) · a_scale · b_scale + bias."""
    exact = centred(a, a_zero, -2) @ centred(b, b_zero, -1)
    y = exact.to(a_scale.dtype) * (a_scale * b_scale)
    return y if bias is None else y + bias


def _matmul_integer_to_float(node: Node) -> Value:
    source = node[0] if node[0].steps is None else node[0].steps
    inputs = [node.get(i) for i in range(2, 7)]
    return node.emit(matmul_integer_to_float, source, node[1], *inputs)


def _blocked_layout(node: Node) -> Value:
    node.refuse(
        "this layout is for one machine; save the optimised model at ORT_ENABLE_EXTENDED, or import the original"
    )


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""

    def add(ops: str, handler: Any) -> None:
        registry.add(ops, handler, 1, 1, DOMAIN)

    add("SkipLayerNormalization SkipSimplifiedLayerNormalization", _skip_norm)
    add("SimplifiedLayerNormalization", _simplified_norm)
    add("EmbedLayerNormalization", _embed_layer_norm)
    add("BiasGelu", lambda node: node.emit(bias_gelu, node[0], node[1]))
    add("FastGelu", lambda node: node.emit(fast_gelu, *node.inputs))
    add("QuickGelu", lambda node: node.emit(quick_gelu, node[0], node.attr("alpha", 1.702)))
    add("Gelu", lambda node: node.emit(F.gelu, node[0]))
    add("BiasSplitGelu", lambda node: node.emit(bias_split_gelu, node[0], node[1]))
    add("BiasAdd", lambda node: node.emit(summed, *node.inputs))
    add("FusedMatMul TransposeMatMul", _fused_matmul)
    add("FusedConv", _fused_conv)
    add("FusedGemm", _fused_gemm)
    add("BiasSoftmax", _bias_softmax)
    add("MatMulNBits", _matmul_nbits)
    add("GatherBlockQuantized", _gather_blocks)
    add("DynamicQuantizeMatMul", _dynamic_quantize_matmul)
    add("MatMulIntegerToFloat", _matmul_integer_to_float)
    # ONNX Runtime writes these two into the default domain of models whose operator set does not have them.
    registry.add("SimplifiedLayerNormalization", _simplified_norm, 0)
    registry.add("LayerNormalization", _layer_norm, 0, 0)
    registry.add(
        "Conv MaxPool AveragePool GlobalMaxPool GlobalAveragePool ReorderInput ReorderOutput Upsample",
        _blocked_layout,
        1,
        1,
        "com.microsoft.nchwc",
    )
