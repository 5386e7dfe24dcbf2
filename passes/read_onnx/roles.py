"""What the operators of ONNX and of ONNX Runtime mean to detection, and which of their inputs are operands."""

from __future__ import annotations

from collections.abc import Sequence

from laurel_graph.graph_view import Role

_ROLES: dict[Role, str] = {
    Role.META: (
        "Shape Size ConstantOfShape NonZero Range Greater GreaterOrEqual Less LessOrEqual Equal Not And Or Xor "
        "BitwiseAnd BitwiseOr BitwiseXor BitwiseNot "
        "ArgMax ArgMin IsNaN IsInf EyeLike RandomNormalLike RandomUniformLike SequenceLength"
    ),
    Role.PASS: (
        "Identity Dropout Cast CastLike QuantizeLinear DequantizeLinear DynamicQuantizeLinear MemcpyToHost "
        "MemcpyFromHost Optional OptionalGetElement SequenceAt BitCast TrainableDropout"
    ),
    Role.RESHAPE: "Reshape Flatten Squeeze Unsqueeze Transpose Expand Tile SpaceToDepth",
    Role.UPSAMPLE: "Resize Upsample DepthToSpace ConvTranspose MaxUnpool GridSample",
    Role.SCATTER: "ScatterND ScatterElements Scatter TensorScatter",
    Role.SELECT: "Where",
    Role.REDUCE: (
        "ReduceMean ReduceSum ReduceL1 ReduceL2 ReduceLogSumExp ReduceSumSquare ReduceProd ReduceLogSum CumSum CumProd"
    ),
    Role.MATH: "Pow Sqrt Reciprocal Neg Abs Floor Ceil Round Sign Exp Log Sin Cos",
    Role.ACTIVATION: (
        "Relu LeakyRelu PRelu Elu Selu Celu Sigmoid Tanh Softplus Softsign HardSigmoid HardSwish Mish Gelu Clip Erf "
        "ThresholdedRelu Swish QuickGelu FastGelu BiasGelu QLinearSigmoid QLinearLeakyRelu Max Min Hardmax Shrink "
        "BiasSplitGelu"
    ),
    Role.SOFTMAX: "Softmax LogSoftmax QLinearSoftmax BiasSoftmax",
    Role.NORM: (
        "BatchNormalization LayerNormalization SimplifiedLayerNormalization RMSNormalization GroupNormalization "
        "InstanceNormalization LpNormalization LRN MeanVarianceNormalization GroupNorm"
    ),
    Role.POOL: (
        "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool QLinearAveragePool "
        "QLinearGlobalAveragePool ReduceMax ReduceMin"
    ),
    Role.CONV: "Conv FusedConv QLinearConv ConvInteger NhwcConv NhwcFusedConv QLinearConvTranspose DeformConv",
    Role.LINEAR: (
        "MatMul Gemm Einsum FusedMatMul FusedGemm MatMulInteger QLinearMatMul QGemm MatMulNBits MatMulBnb4 MatMulFpQ4 "
        "MatMulIntegerToFloat DynamicQuantizeMatMul GemmFloat8 FusedMatMulActivation TransposeMatMul"
    ),
    Role.WEIGHTED: (
        "LSTM GRU RNN Attention QAttention PackedAttention DecoderAttention LongformerAttention DynamicQuantizeLSTM "
        "MoE QMoE"
    ),
    Role.MIX: (
        "DFT STFT Rfft Irfft Col2Im MultiHeadAttention GroupQueryAttention PackedMultiHeadAttention SparseAttention "
        "DecoderMaskedMultiHeadAttention PagedAttention LinearAttention FlexAttention"
    ),
    Role.CONCAT: "Concat",
    Role.ADD: "Add Sum QLinearAdd BiasAdd",
    Role.SUB: "Sub",
    Role.MUL: "Mul Div QLinearMul",
    Role.SLICE: "Slice Split Gather Pad GatherND GatherElements Compress TopK CenterCropPad SplitToSequence",
}
ROLE_OF = {op: role for role, ops in _ROLES.items() for op in ops.split()}
"""Operator type to what it means."""

OPERANDS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearMul"), (0, 3)),
    **dict.fromkeys(
        (
            "Conv",
            "FusedConv",
            "ConvInteger",
            "NhwcConv",
            "NhwcFusedConv",
            "ConvTranspose",
            "MatMulInteger",
            "MatMulNBits",
            "MatMulBnb4",
            "MatMulIntegerToFloat",
            "DynamicQuantizeMatMul",
            "Gemm",
            "FusedGemm",
            "DeformConv",
        ),
        (0, 1),
    ),
    **dict.fromkeys(("ScatterND", "ScatterElements", "Scatter"), (0, 2)),
    **dict.fromkeys(
        (
            "Reshape",
            "Expand",
            "Tile",
            "Resize",
            "Upsample",
            "Slice",
            "Split",
            "Pad",
            "Unsqueeze",
            "Squeeze",
            "Clip",
            "QuantizeLinear",
            "DequantizeLinear",
            "DynamicQuantizeLinear",
            "Dropout",
            "ReduceMean",
            "ReduceSum",
            "TopK",
            "ReduceMax",
            "ReduceMin",
            "ReduceL2",
            "QLinearSigmoid",
            "QLinearLeakyRelu",
            "QLinearGlobalAveragePool",
            "QLinearAveragePool",
            "QLinearSoftmax",
            "CastLike",
            "BatchNormalization",
            "LayerNormalization",
            "SimplifiedLayerNormalization",
            "RMSNormalization",
            "GroupNormalization",
            "InstanceNormalization",
            "GroupNorm",
            "SequenceAt",
            "Compress",
            "CenterCropPad",
            "PRelu",
            "BiasGelu",
            "FastGelu",
            "DFT",
            "Col2Im",
            "CumSum",
            "CumProd",
            "TrainableDropout",
        ),
        (0,),
    ),
    "BiasAdd": (0, 2),
    "Where": (1, 2),
    "LSTM": (0, 5, 6),
    "GRU": (0, 5),
    "RNN": (0, 5),
    "DynamicQuantizeLSTM": (0, 5, 6),
}
"""Which inputs are operands; the others (zero points, axes, sizes, running statistics) only shape the result."""

_ADDED: dict[tuple[str, str], tuple[Role, tuple[int, ...] | None]] = {}
"""Domain and operator type to role and operands, for what a person added."""


def add_role(operator: str, role: Role, domain: str = "", operands: Sequence[int] | None = None) -> None:
    """See :func:`laurel_graph.passes.extend.add_role`."""
    _ADDED[domain, operator] = role, None if operands is None else tuple(operands)


def is_added(domain: str, operator: str) -> bool:
    """Whether a person said what the operator means."""
    return (domain, operator) in _ADDED


def role_of(domain: str, operator: str) -> Role:
    """Returns what an operator means."""
    added = _ADDED.get((domain, operator))
    return ROLE_OF.get(operator, Role.OTHER) if added is None else added[0]


def operands_of(domain: str, operator: str) -> tuple[int, ...] | None:
    """Returns the places of the inputs that are operands, ``None`` for all."""
    added = _ADDED.get((domain, operator))
    return OPERANDS.get(operator) if added is None else added[1]
