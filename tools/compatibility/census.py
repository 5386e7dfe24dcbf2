"""Which operators of a file are on the lists of runtimes that cannot be had or run everywhere: a census, no run.

An operator on a list may still be refused for its attributes or types, and the lists are of the versions that are named.
"""

from __future__ import annotations

from pathlib import Path

from laurel_graph import onnx_file
from laurel_graph.onnx_model.walk import graphs_of

LISTS = {
    "onnx2tf 1.29.24 (LiteRT, TensorFlow)": frozenset(
        """
        Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
        BatchNormalization Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast Ceil
        Celu CenterCropPad Clip Col2Im Compress Concat ConcatFromSequence Constant ConstantOfShape Conv
        ConvInteger ConvTranspose Cos Cosh CumProd CumSum DFT DeformConv DepthToSpace DequantizeLinear Det Div
        Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor FusedConv GRU Gather
        GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
        GridSample GroupNorm GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If
        ImageDecoder InstanceNormalization Inverse IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less
        LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul MatMulInteger Max MaxPool MaxRoiPool
        MaxUnpool Mean MeanVarianceNormalization MelWeightMatrix Min Mish Mod Mul Multinomial Neg
        NegativeLogLikelihoodLoss NonMaxSuppression NonZero Not OneHot Optional OptionalGetElement
        OptionalHasElement Or PRelu Pad Pow QLinearAdd QLinearConcat QLinearConv QLinearLeakyRelu QLinearMatMul
        QLinearMul QLinearSigmoid QLinearSoftmax QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike
        RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
        ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare RegexFullMatch Relu Reshape Resize
        ReverseSequence RoiAlign RotaryEmbedding Round STFT ScaleAndTranslate Scan Scatter ScatterElements
        ScatterND Selu SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength
        Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax SoftmaxCrossEntropyLoss Softplus Softsign
        SpaceToDepth Split SplitToSequence Sqrt Squeeze StringConcat StringNormalizer StringSplit Sub Sum Tan Tanh
        TensorScatter TfIdfVectorizer ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Upsample Where
        Xor
        """.split()
    ),
    "TensorRT 8.5 (its ONNX parser)": frozenset(
        """
        Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu
        Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div
        Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gemm
        GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GRU HardSwish HardSigmoid
        Identity If ImageScaler InstanceNormalization IsNaN LeakyRelu Less LessOrEqual Log LogSoftmax Loop LRN
        LSTM LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mod Mul Neg
        NonMaxSuppression NonZero Not OneHot Or Pad ParametricSoftplus Pow PRelu QuantizeLinear RandomNormal
        RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
        ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
        ReverseSequence RNN RoiAlign Round ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape Shrink
        Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan
        Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
        """.split()
    ),
    "Core ML (ML programs of ONNX Runtime's provider)": frozenset(
        """
        Add ArgMax AveragePool Cast Clip Concat Conv ConvTranspose Cos DepthToSpace Ceil Div Elu Erf Exp GatherND
        Gemm Gelu GlobalAveragePool GlobalMaxPool GridSample GroupNormalization HardSigmoid Identity
        InstanceNormalization LayerNormalization LeakyRelu MatMul MaxPool Max Mul Pow PRelu Range Reciprocal
        ReduceSum ReduceMean ReduceMax Relu Reshape Resize Round Shape Sin Slice Softplus Split Sub Sigmoid
        Softmax Sqrt Squeeze Tanh Tile Transpose Unsqueeze
        """.split()
    ),
}
"""List to the operators of ``ai.onnx`` on it: the wheel's files; ``docs/operators.md`` of onnx-tensorrt; ONNX Runtime's
``coreml_supported_mlprogram_ops.md``.
"""


def unknown_operators(path: Path, known: frozenset[str]) -> set[str]:
    """Returns the operators of a file that are not on a list; constants count as weights."""
    return {
        node.op_type
        for graph in graphs_of(onnx_file.read(path).graph)
        for node in graph.node
        if node.op_type != "Constant" and (node.domain not in ("", "ai.onnx") or node.op_type not in known)
    }
