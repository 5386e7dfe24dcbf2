"""Translates a torch.fx graph into the neutral :class:`~laurel_graph.view.GraphView`.

Reads ATen graphs (torch.export, with or without decompositions) and graphs of modules and functions (symbolic_trace).
In-place operators take their functional form: after ``y = relu_(x)`` every later use of x reads y.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from laurel_graph.view import GraphView, Role, Shape, Vertex, source_line

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
    Role.REDUCE: "mean sum var std var_mean std_mean amax amin norm linalg_vector_norm prod logsumexp cumsum",
    Role.MATH: "pow square sqrt rsqrt reciprocal neg abs exp log log1p expm1 floor ceil round sign sin cos clamp_min "
    "clamp_max softplus float_power",
    Role.ACTIVATION: (
        "relu relu6 leaky_relu prelu elu selu celu sigmoid tanh softsign hardsigmoid hardswish hardtanh mish "
        "gelu silu swish clamp clip erf threshold glu logsigmoid log_sigmoid rrelu tanhshrink quick_gelu max min "
        "maximum minimum"
    ),
    Role.SOFTMAX: "softmax log_softmax _softmax _log_softmax softmin gumbel_softmax _safe_softmax",
    Role.NORM: (
        "batch_norm layer_norm group_norm instance_norm rms_norm native_layer_norm native_group_norm native_batch_norm "
        "_native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm local_response_norm normalize "
        "_fused_rms_norm weight_norm_input _batch_norm_with_update _batch_norm_no_update"
    ),
    Role.POOL: (
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
        "max_pool2d_with_indices max_pool3d_with_indices max_pool1d_with_indices lp_pool2d adaptive_max_pool3d"
    ),
    Role.CONV: "conv1d conv2d conv3d convolution _convolution deform_conv2d cudnn_convolution mkldnn_convolution",
    Role.LINEAR: "linear matmul mm bmm einsum bilinear mv dot inner outer tensordot chain_matmul _weight_int8pack_mm "
    "_grouped_mm grouped_mm",
    Role.WEIGHTED: "lstm gru rnn_tanh rnn_relu multi_head_attention_forward _native_multi_head_attention",
    Role.MIX: (
        "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_attention_math flex_attention fft fft2 fftn rfft "
        "rfft2 irfft irfft2 ifft ifft2 ifftn fft_fft fft_fft2 fft_fftn fft_rfft fft_rfft2 fft_irfft fft_irfft2 "
        "fft_ifft fft_ifft2 _fft_r2c _fft_c2c _fft_c2r rfftn fft_rfftn irfftn fft_irfftn unfold im2col"
    ),
    Role.CONCAT: "cat concat concatenate stack hstack vstack",
    Role.ADD: "add iadd",
    Role.SUB: "sub rsub subtract isub",
    Role.MUL: "mul multiply div true_divide divide truediv imul itruediv",
    Role.SLICE: (
        "slice select narrow index_select gather split chunk unbind tensor_split split_with_sizes pad constant_pad_nd "
        "reflection_pad2d replication_pad2d reflection_pad1d index _unsafe_index unsafe_split unsafe_chunk diagonal "
        "take_along_dim topk masked_select unsafe_split_with_sizes split_copy unbind_copy slice_copy select_copy "
        "split_with_sizes_copy"
    ),
}
ROLE_OF = {op: role for role, ops in _ROLES.items() for op in ops.split()}

_PARTS = frozenset(
    op for op in ROLE_OF if op.startswith(("split", "chunk", "unbind", "tensor_split", "unsafe_split", "unsafe_chunk"))
)
_ATTRIBUTES = {"T": Role.RESHAPE, "mT": Role.RESHAPE, "real": Role.OTHER, "imag": Role.OTHER, "data": Role.PASS}
_LAYER_ROLES: tuple[tuple[Role, str], ...] = (
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
_FUSED_ADVICE = "the add is part of {op}; export the model with run_decompositions() first"


def fx_view(module: fx.GraphModule, model: str = "") -> GraphView:
    """Returns the finished view of a traced module; shapes come from ``meta["val"]`` where it is set."""
    builder = _Builder(module, GraphView(model=model or type(module).__name__))
    for node in module.graph.nodes:
        builder.node(node)
    return builder.view.finish()


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


class _Builder:
    def __init__(self, module: fx.GraphModule, view: GraphView) -> None:
        self.module, self.view = module, view
        self.modules = dict(module.named_modules())
        self.current: dict[fx.Node, int] = {}
        self.viewed: dict[fx.Node, fx.Node] = {}

    def node(self, node: fx.Node) -> None:
        self.view.nodes += 1
        if node.op == "output":
            self.view.outputs.extend(self.current[n] for n in node.all_input_nodes)
        elif node.op == "placeholder":
            self.current[node] = self.put(node, Role.INPUT if _is_tensor(node) else Role.META, "input", [])
        elif node.op == "get_attr":
            self.constant(node)
        elif node.op == "call_module":
            self.call_module(node)
        else:
            self.call(node, operator_name(node.target))
        if is_in_place(node) and node.all_input_nodes:
            self.mutate(node.all_input_nodes[0], self.current[node])

    def put(self, node: fx.Node, role: Role, op: str, inputs: Sequence[int], **more: Any) -> int:
        more.setdefault("shape", _shape(node))
        more.setdefault("dtype", _dtype(node))
        return self.view.add(
            Vertex(
                node.name,
                node.name,
                op,
                role,
                tuple(inputs),
                name=node.name,
                scope=_scope(node),
                source=source_line(node.stack_trace or ""),
                **more,
            )
        )

    def reads(self, nodes: Any) -> list[int]:
        found: list[int] = []
        fx.node.map_arg(nodes, lambda n: found.append(self.current[n]))
        return found

    def mutate(self, node: fx.Node, vertex: int) -> None:
        """Makes every later use of *node*, and of what it is a view of, read the new value."""
        while True:
            before = self.current[node]
            self.current[node] = vertex
            base = self.viewed.get(node)
            if base is None:
                return
            sliced = self.view.vertices[before].role is Role.SLICE
            role, inputs = (Role.SCATTER, [self.current[base], vertex]) if sliced else (Role.RESHAPE, [vertex])
            vertex = self.put(base, role, "write to a view", inputs)
            node = base

    def constant(self, node: fx.Node) -> None:
        value: Any = self.module
        for part in str(node.target).split("."):
            value = getattr(value, part, None)
        shape, dtype = (_dims(value), _type(value)) if isinstance(value, torch.Tensor) else (None, None)
        self.current[node] = self.put(node, Role.CONSTANT, "attribute", [], shape=shape, dtype=dtype)

    def call_module(self, node: fx.Node) -> None:
        layer = self.modules[str(node.target)]
        kind, inputs = type(layer).__name__, self.reads((node.args, node.kwargs))
        if type(layer).__module__ == "laurel_graph.module":
            spec = layer.spec
            self.current[node] = self.put(
                node, Role.LAUREL, kind, inputs, rank=spec.rank, site=spec.site, axis=spec.axis, width=spec.width
            )
            return
        role = next((role for role, pattern in _LAYER_ROLES if re.search(pattern, kind)), None)
        if role is None and type(layer).__module__ == "torch.nn.modules.activation":
            role = Role.ACTIVATION
        matrices = [p for p in layer.parameters() if sum(1 for dim in p.shape if dim != 1) >= 2]
        if role is None or (role is Role.PASS and matrices):
            role = Role.WEIGHTED if matrices else Role.OTHER if len(inputs) != 1 else Role.ACTIVATION
        more: dict[str, Any] = {"scope": None}
        weight = getattr(layer, "weight", None)
        if role in (Role.CONV, Role.LINEAR, Role.WEIGHTED, Role.UPSAMPLE) and (matrices or callable(weight)):
            more = {"weighted": True, "weight": f"{node.target}.weight"}
            width = getattr(layer, "out_channels", None) or getattr(layer, "out_features", None)
            more["width"] = width if isinstance(width, int) else None
            more["axis"] = 1 if role is Role.CONV else -1
        elif role is Role.POOL:
            more["mixes"] = _mixes(getattr(layer, "kernel_size", 1), getattr(layer, "stride", 1))
        more.pop("scope", None)
        if role in (Role.CONV, Role.LINEAR, Role.NORM, Role.PASS, Role.POOL):
            inputs = inputs[:1]
        self.current[node] = self.put(node, role, kind, inputs, **more)

    def call(self, node: fx.Node, op: str) -> None:
        args = node.args
        role = ROLE_OF.get(op, Role.OTHER)
        if op == "getattr":
            role = _ATTRIBUTES.get(str(args[1]), Role.META)
        elif op == "getitem":
            self.getitem(node)
            return
        elif not _is_tensor(node) and "val" in node.meta:
            role = Role.META if not isinstance(node.meta["val"], (tuple, list)) else role
        namespace = getattr(node.target, "namespace", "")
        if namespace == "laurel":
            role = Role.LAUREL
        handler = getattr(self, f"call_{op}", None)
        if handler is not None and role is not Role.META:
            handler(node)
            return
        more: dict[str, Any] = {}
        inputs = self.reads((args, node.kwargs))
        if role in (Role.CONV, Role.LINEAR):
            inputs = inputs[:2] if op != "einsum" else inputs
            more["width"] = self.width(op, inputs)
            more["axis"] = 1 if role is Role.CONV else -1
            if role is Role.CONV and _transposed(node):
                role, more["weighted"] = Role.UPSAMPLE, True
        elif role is Role.UPSAMPLE:
            more["weighted"] = op.startswith("conv_transpose")
            inputs = inputs[:1]
        elif role is Role.WEIGHTED:
            more["weighted"] = True
        elif role is Role.CONCAT:
            more["axis"] = _argument(node, 1, ("dim", "axis"), 0)
            if op == "stack":
                role = Role.OTHER
        elif role is Role.POOL:
            kernel = _argument(node, 1, ("kernel_size", "output_size"), 1)
            more["mixes"] = "adaptive" not in op and _mixes(kernel, _argument(node, 2, ("stride",), None) or kernel)
        elif role is Role.SLICE:
            self.slice(node, op, inputs)
            return
        elif role is Role.SCATTER:
            inputs = [*inputs[:1], *inputs[-1:]] if op != "slice_scatter" else inputs[:2]
        elif op in ("permute", "transpose", "swapaxes", "t"):
            more["permutation"] = _permutation(node, op)
        elif role is Role.LAUREL:
            more["axis"] = -1
        if role in (Role.RESHAPE, Role.PASS, Role.NORM, Role.POOL, Role.REDUCE, Role.SOFTMAX):
            inputs = inputs[:1]
        self.current[node] = self.put(node, role, op, inputs, **more)
        if role is Role.RESHAPE and node.all_input_nodes:
            self.viewed[node] = node.all_input_nodes[0]

    def width(self, op: str, inputs: Sequence[int]) -> int | None:
        shape = self.view.vertices[inputs[1]].shape if len(inputs) > 1 else None
        if not shape:
            return None
        width = shape[-1] if op in ("matmul", "mm", "bmm", "einsum", "_grouped_mm", "grouped_mm") else shape[0]
        return width if isinstance(width, int) else None

    def getitem(self, node: fx.Node) -> None:
        source, index = node.args[0], node.args[1]
        assert isinstance(source, fx.Node)  # fx never writes getitem on anything else
        vertex = self.view.vertices[self.current[source]]
        op = operator_name(source.target) if source.op in ("call_function", "call_method") else ""
        several = isinstance(source.meta.get("val"), (tuple, list)) or op in _PARTS
        if not several:
            self.slice(node, "getitem", self.reads(source))
        elif op in _PARTS and isinstance(index, int):
            axis, sizes = self.part_sizes(source, op)
            window = None
            if sizes is not None and -len(sizes) <= index < len(sizes) and op != "unbind":
                window = (sum(sizes[: index % len(sizes)]), sum(sizes[: index % len(sizes) + 1]))
            inputs = vertex.inputs[:1]
            self.current[node] = self.put(node, Role.SLICE, op, inputs, axis=axis, window=window)
            self.viewed[node] = source.all_input_nodes[0]
        else:
            role = vertex.role if vertex.role is Role.META else Role.PASS
            self.current[node] = self.put(node, role, "getitem", [self.current[source]])

    def part_sizes(self, node: fx.Node, op: str) -> tuple[int, list[int] | None]:
        whole = _shape(node.all_input_nodes[0])
        axis = _argument(node, 2 if op not in ("unbind", "unbind_copy") else 1, ("dim",), 0)
        size = whole[axis] if whole is not None and isinstance(axis, int) and -len(whole) <= axis < len(whole) else None
        given = _argument(node, 1, ("split_size_or_sections", "split_size", "split_sizes", "chunks"), None)
        if isinstance(given, (list, tuple)):
            return axis, [v for v in given if isinstance(v, int)] if all(isinstance(v, int) for v in given) else None
        if not isinstance(size, int) or not isinstance(given, int) or given <= 0:
            return axis, None
        step = -(-size // given) if "chunk" in op else given
        return axis, [min(step, size - start) for start in range(0, size, step)]

    def slice(self, node: fx.Node, op: str, inputs: Sequence[int]) -> None:
        axis, window = 0, None
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        role = Role.SLICE
        table = bool(inputs) and not self.view.vertices[inputs[0]].data
        if op in ("index", "_unsafe_index", "index_select", "gather", "getitem") and table and len(inputs) > 1:
            role = Role.OTHER
        elif op == "slice":
            axis = _argument(node, 1, ("dim",), 0)
            window = _window(node, axis, _argument(node, 2, ("start",), None), _argument(node, 3, ("end",), None))
            window = window if _argument(node, 4, ("step",), 1) == 1 else None
        elif op == "getitem":
            axis, window = _indexed(node)
        elif op == "narrow":
            axis, start, length = (_argument(node, i, (), 0) for i in (1, 2, 3))
            if isinstance(start, int) and isinstance(length, int):
                window = (start, start + length)
        inputs = inputs if role is Role.OTHER else inputs[:1]
        self.current[node] = self.put(node, role, op, inputs, axis=axis, window=window)
        if source is not None and role is Role.SLICE and op not in ("index", "pad", "constant_pad_nd", "index_select"):
            self.viewed[node] = source

    def fused(self, node: fx.Node, op: str, addend: Any, role: Role, factors: Sequence[Any]) -> None:
        """addend + product of factors, in one operator of torch."""
        inputs = self.reads(factors)
        product = self.put(node, role, op, inputs, width=self.width("mm", inputs) if role is Role.LINEAR else None)
        added = self.reads(addend)
        if added and not self.view.vertices[added[0]].data and role is Role.LINEAR:
            self.current[node] = product
            return
        self.current[node] = self.put(node, Role.ADD, op, [*added, product], blocked=_FUSED_ADVICE.format(op=op))

    def call_addmm(self, node: fx.Node) -> None:
        self.fused(node, "addmm", node.args[0], Role.LINEAR, node.args[1:3])

    def call_baddbmm(self, node: fx.Node) -> None:
        self.fused(node, "baddbmm", node.args[0], Role.LINEAR, node.args[1:3])

    def call_addcmul(self, node: fx.Node) -> None:
        self.fused(node, "addcmul", node.args[0], Role.MUL, node.args[1:3])

    def call_addcdiv(self, node: fx.Node) -> None:
        self.fused(node, "addcdiv", node.args[0], Role.MUL, node.args[1:3])

    def call_sum(self, node: fx.Node) -> None:
        """``sum(stack(values))`` along the stacked axis is an add of the values."""
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and source.op == "call_function" and operator_name(source.target) == "stack":
            axis = _argument(node, 1, ("dim", "axis"), None)
            axis = axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis
            if axis == _argument(source, 1, ("dim",), 0):
                blocked = _FUSED_ADVICE.format(op="sum(stack(...))").replace(
                    "export the model with run_decompositions() first", "write it as x + f(x)"
                )
                self.current[node] = self.put(node, Role.ADD, "sum", self.reads(source.args[0]), blocked=blocked)
                return
        self.current[node] = self.put(node, Role.REDUCE, "sum", self.reads(node.args)[:1])


def _value(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return value if value is not None else node.meta.get("tensor_meta")


def _is_tensor(node: fx.Node) -> bool:
    value = _value(node)
    return value is None or hasattr(value, "shape")


def _dims(value: Any) -> Shape:
    return tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)


def _type(value: Any) -> str | None:
    return str(value.dtype).removeprefix("torch.") if hasattr(value, "dtype") else None


def _shape(node: fx.Node) -> Shape | None:
    value = _value(node)
    return _dims(value) if hasattr(value, "shape") else None


def _dtype(node: fx.Node) -> str | None:
    return _type(_value(node))


def _scope(node: fx.Node) -> str:
    entries = list((node.meta.get("nn_module_stack") or {}).values())
    if node.op == "call_module" and entries and str(entries[-1][0]) == str(node.target):
        entries.pop()
    path = str(entries[-1][0]) if entries else ""
    return re.sub(r"^(L\['self'\]|L__self__)\.?|@\d+", "", path)


def _argument(node: fx.Node, place: int, names: Sequence[str], default: Any) -> Any:
    if len(node.args) > place:
        return node.args[place]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def _mixes(kernel: Any, stride: Any) -> bool:
    kernels = kernel if isinstance(kernel, (tuple, list)) else (kernel,)
    strides = stride if isinstance(stride, (tuple, list)) else (stride,)
    return any(isinstance(k, int) and k > 1 for k in kernels) and all(s == 1 for s in strides)


def _transposed(node: fx.Node) -> bool:
    return operator_name(node.target) in ("convolution", "_convolution") and len(node.args) > 6 and node.args[6] is True


def _permutation(node: fx.Node, op: str) -> tuple[int, ...] | None:
    shape = _shape(node)
    if shape is None:
        return None
    axes: list[Any] = list(range(len(shape)))
    given = node.args[1:] if len(node.args) != 2 or isinstance(node.args[1], int) else node.args[1]
    if op == "permute":
        dims = list(given) if isinstance(given, (list, tuple)) else []  # type: ignore[unreachable]
        return tuple(dim % len(shape) for dim in dims) if len(dims) == len(shape) else None
    first, second = (
        (given[0], given[1]) if op != "t" and isinstance(given, (list, tuple)) and len(given) == 2 else (0, -1)
    )
    if not isinstance(first, int) or not isinstance(second, int) or not shape:
        return None
    axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


def _window(node: fx.Node, axis: Any, start: Any, end: Any) -> tuple[int, int] | None:
    shape = _shape(node.all_input_nodes[0]) if node.all_input_nodes else None
    size = shape[axis] if shape is not None and isinstance(axis, int) and -len(shape) <= axis < len(shape) else None
    start = 0 if start is None else start
    end = 2**62 if end is None else end
    if not isinstance(start, int) or not isinstance(end, int):
        return None
    if not isinstance(size, int):
        return (start, end) if start >= 0 and 0 <= end < 2**31 else None
    start, end = (v + size if v < 0 else v for v in (start, end))
    return max(0, min(start, size)), max(0, min(end, size))


def _indexed(node: fx.Node) -> tuple[int, tuple[int, int] | None]:
    """Axis and window of ``x[:, a:b]``; an unknown window where more than one axis is cut or an axis vanishes."""
    index = node.args[1]
    items = list(index) if isinstance(index, (tuple, list)) else [index]
    if Ellipsis in items:
        place = items.index(Ellipsis)
        tail = len(items) - place - 1
        cuts = [(i, v) for i, v in enumerate(items[:place])]
        cuts += [(i - tail, v) for i, v in enumerate(items[place + 1 :])]
    else:
        cuts = list(enumerate(items))
    cuts = [(axis, item) for axis, item in cuts if item != slice(None)]
    if len(cuts) != 1:
        return 0, None
    axis, item = cuts[0]
    if not isinstance(item, slice) or item.step not in (None, 1):
        return axis, None
    return axis, _window(node, axis, item.start, item.stop)
