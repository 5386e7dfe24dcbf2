"""What the operators and layers of torch mean to detection, by their plain names."""

from __future__ import annotations

import torch
from torch import fx

from laurel_graph.graph_view import Role

_ROLES: dict[Role, str] = {
    Role.META: (
        "size sym_size shape dim numel sym_numel sym_stride sym_storage_offset stride device zeros_like ones_like "
        "full_like empty_like rand_like randn_like arange new_zeros new_ones new_full new_empty eq ne lt le gt ge "
        "logical_and logical_or logical_not logical_xor isnan isinf isfinite any all argmax argmin argsort bitwise_and "
        "bitwise_or bitwise_not and_ or_ invert nonzero bucketize searchsorted is_floating_point get_default_dtype "
        "sym_constrain_range_for_size sym_constrain_range _assert_scalar _assert_async _assert_tensor_metadata "
        "_assert len isclose item new_empty_strided empty zeros ones full eye tril_indices triu_indices"
    ),
    Role.PASS: (
        "dropout native_dropout feature_dropout alpha_dropout feature_alpha_dropout dropout1d dropout2d dropout3d "
        "contiguous clone detach alias to _to_copy float half bfloat16 double type type_as lift_fresh_copy lift_fresh "
        "stochastic_depth drop_path quantize_per_tensor quantize_per_channel dequantize dequantize_per_tensor "
        "dequantize_per_channel dequantize_affine quantize_affine fake_quantize_per_tensor_affine cpu cuda "
        "fake_quantize_per_channel_affine convert_element_type positive requires_grad view_as_real_copy "
        "fake_quantize_per_tensor_affine_cachemask"
    ),
    Role.RESHAPE: (
        "view reshape permute transpose t flatten unflatten squeeze unsqueeze expand repeat roll swapaxes swapdims "
        "movedim moveaxis view_as reshape_as expand_as broadcast_to _unsafe_view mT T numpy_T flip pixel_unshuffle "
        "channel_shuffle native_channel_shuffle _reshape_alias view_copy permute_copy squeeze_copy expand_copy tile "
        "unsqueeze_copy transpose_copy t_copy repeat_interleave ravel window_partition rearrange"
    ),
    Role.UPSAMPLE: (
        "interpolate upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d "
        "upsample_trilinear3d upsample_linear1d _upsample_nearest_exact2d _upsample_bilinear2d_aa "
        "_upsample_bicubic2d_aa pixel_shuffle conv_transpose1d conv_transpose2d conv_transpose3d grid_sample upsample "
        "grid_sampler_2d grid_sampler"
    ),
    Role.SCATTER: (
        "slice_scatter select_scatter index_put _unsafe_index_put index_copy copy scatter scatter_add "
        "masked_scatter diagonal_scatter setitem"
    ),
    Role.SELECT: "where masked_fill",
    Role.REDUCE: "mean sum var std var_mean std_mean norm linalg_vector_norm prod logsumexp cumsum",
    Role.MATH: (
        "pow square sqrt rsqrt reciprocal neg abs exp exp2 log log2 log10 log1p expm1 floor ceil round sign sin cos "
        "float_power"
    ),
    Role.ACTIVATION: (
        "relu relu6 leaky_relu prelu elu selu celu sigmoid tanh softsign hardsigmoid hardswish hardtanh mish "
        "gelu silu swish clamp clip clamp_min clamp_max erf threshold _threshold softplus softshrink hardshrink glu "
        "logsigmoid log_sigmoid rrelu tanhshrink quick_gelu max min maximum minimum"
    ),
    Role.SOFTMAX: "softmax log_softmax _softmax _log_softmax softmin gumbel_softmax _safe_softmax",
    Role.NORM: (
        "batch_norm layer_norm group_norm instance_norm rms_norm native_layer_norm native_group_norm native_batch_norm "
        "_native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm local_response_norm normalize "
        "_fused_rms_norm weight_norm_input _batch_norm_with_update _batch_norm_no_update "
        "_native_batch_norm_legit_functional"
    ),
    Role.POOL: (
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
        "max_pool2d_with_indices max_pool3d_with_indices max_pool1d_with_indices lp_pool2d adaptive_max_pool3d "
        "amax amin"
    ),
    Role.CONV: "conv1d conv2d conv3d convolution _convolution deform_conv2d cudnn_convolution mkldnn_convolution",
    Role.LINEAR: "linear matmul mm bmm einsum bilinear mv dot inner outer tensordot chain_matmul _weight_int8pack_mm "
    "_grouped_mm grouped_mm",
    Role.WEIGHTED: "lstm gru rnn_tanh rnn_relu multi_head_attention_forward _native_multi_head_attention",
    Role.MIX: (
        "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_attention_math flex_attention fft fft2 fftn rfft "
        "rfft2 irfft irfft2 ifft ifft2 ifftn fft_fft fft_fft2 fft_fftn fft_rfft fft_rfft2 fft_irfft fft_irfft2 "
        "fft_ifft fft_ifft2 _fft_r2c _fft_c2c _fft_c2r rfftn fft_rfftn irfftn fft_irfftn unfold im2col fold col2im"
    ),
    Role.CONCAT: "cat concat concatenate stack hstack vstack",
    Role.ADD: "add iadd",
    Role.SUB: "sub rsub subtract isub",
    Role.MUL: "mul multiply div true_divide divide truediv imul itruediv",
    Role.SLICE: (
        "slice select narrow index_select gather split chunk unbind tensor_split split_with_sizes pad constant_pad_nd "
        "reflection_pad2d replication_pad2d reflection_pad1d index _unsafe_index unsafe_split unsafe_chunk diagonal "
        "take_along_dim topk sort kthvalue masked_select unsafe_split_with_sizes split_copy unbind_copy slice_copy "
        "select_copy split_with_sizes_copy"
    ),
}
ROLE_OF = {op: role for role, ops in _ROLES.items() for op in ops.split()}
"""Plain name of an operator to what it means."""

PARTS = frozenset(
    op for op in ROLE_OF if op.startswith(("split", "chunk", "unbind", "tensor_split", "unsafe_split", "unsafe_chunk"))
)
INDEXED = frozenset({"topk", "sort", "kthvalue", "max", "min", "cummax", "cummin"})
"""Operators whose second result tells where the elements of the first stood."""
ATTRIBUTES = {
    "T": Role.RESHAPE,
    "mT": Role.RESHAPE,
    "real": Role.OTHER,
    "imag": Role.OTHER,
    "data": Role.PASS,
    "values": Role.PASS,
}
LAYER_ROLES: tuple[tuple[Role, str], ...] = (
    (Role.UPSAMPLE, r"ConvTranspose|Upsampl|PixelShuffle"),
    (Role.CONV, r"Conv[123]d|Conv$"),
    (Role.WEIGHTED, r"^(LSTM|GRU|RNN|MultiheadAttention|Transformer.*)$"),
    (Role.LINEAR, r"Linear$"),
    (Role.NORM, r"Norm"),
    (Role.POOL, r"Pool"),
    (Role.PASS, r"Dropout|Identity|DropPath|StochasticDepth|Quant"),
    (Role.RESHAPE, r"^(Flatten|Unflatten|PixelUnshuffle|ChannelShuffle)$"),
    (Role.SLICE, r"Pad"),
    (Role.MIX, r"^(Unfold|Fold)$"),
    (Role.SOFTMAX, r"Softmax"),
)


def add_role(function: str, role: Role) -> None:
    """See :func:`laurel_graph.passes.extend.add_torch_role`."""
    ROLE_OF[function] = role


def operator_name(target: object) -> str:
    """Returns the plain name of what an fx node calls: ``aten.add_.Tensor``, ``operator.iadd`` -> ``add``, ``iadd``."""
    if isinstance(target, str):
        name = target
    elif isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.rpartition("::")[2]
    else:
        name = getattr(target, "__name__", "") or str(target)
    return name if name in ("and_", "or_") else name.removesuffix("_") if not name.startswith("__") else name.strip("_")


def is_in_place(node: fx.Node) -> bool:
    """Tells whether *node* writes into its first operand (``add_``, ``relu_``, ``nn.ReLU(inplace=True)`` ...)."""
    if node.op == "call_module":
        owner = node.graph.owning_module
        return owner is not None and bool(getattr(owner.get_submodule(str(node.target)), "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    target = node.target
    if isinstance(target, str):
        return target.endswith("_") and not target.startswith("_")
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.endswith("_") and target._schema.is_mutable
    name = getattr(target, "__name__", "")
    in_place_function = name.endswith("_") and name not in ("and_", "or_") and not name.startswith("_")
    return in_place_function or name in ("iadd", "isub", "imul", "setitem") or bool(node.kwargs.get("inplace", False))
