"""Single-node models of ``ai.laurel`` with random tensors, and what they must compute (formula.py in float64)."""

import math
from dataclasses import dataclass

import numpy as np
from models import ONNX_TYPES
from onnx import TensorProto, helper, numpy_helper

from laurel_graph.formula import residual
from laurel_graph.opset.schema import DOMAIN, VERSION, Operator
from laurel_graph.runtime import session_options

EPSILON = 2.0**-10
ROUNDED = {"float32": np.float32, "float64": np.float64, "float16": np.float16}


def rounded(array, dtype):
    """Returns *array* in float64 (float32 for the wire), rounded to what *dtype* can hold."""
    if dtype == "bfloat16":
        bits = np.asarray(array, np.float32).view(np.uint32)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return bits.view(np.float32).astype(np.float64)
    return np.asarray(array).astype(ROUNDED[dtype]).astype(np.float64)


@dataclass
class Case:
    """One operator on arrays of one shape.

    Attributes:
        op: the operator.
        shape: of x; the feature axis is op.axis.
        rank: r of its low-rank products.
        dtype: element type.
        per_channel: alpha and beta are (D,), else ().
        constant: parameters are initializers, else graph inputs.
        sum_output: the second output of a norm is asked for.
    """

    op: Operator
    shape: tuple
    rank: int = 4
    dtype: str = "float32"
    per_channel: bool = False
    constant: bool = True
    sum_output: bool = True
    seed: int = 0

    def __post_init__(self):
        self.tensors = self.make_tensors()

    def parameter_shapes(self):
        d, r, k = self.shape[self.op.axis], self.rank, self.op.previous
        scalar = (d,) if self.per_channel else ()
        return {
            "alpha": scalar,
            "beta": scalar,
            "A": (d, r),
            "B": (r, d),
            "gamma": (k,),
            "previous_A": (k, d, r),
            "previous_B": (k, r, d),
            "bias": (d,),
            "scale": (d,),
            "offset": (d,),
        }

    def make_tensors(self):
        rng = np.random.default_rng(self.seed)
        shapes = self.parameter_shapes()
        fan = {"A": 0, "B": 0, "previous_A": 1, "previous_B": 1}
        tensors = {}
        for name in self.op.inputs:
            values = rng.standard_normal(shapes.get(name, self.shape))
            if name in fan:
                values /= math.sqrt(max(1, values.shape[fan[name]]))
            tensors[name] = rounded(values, self.dtype)
        return tensors

    def expected(self):
        """Returns the list of outputs in float64."""
        op, t = self.op, self.tensors
        axis = op.axis
        branch = t["f"] + t["bias"] if op.bias else t["f"]
        parameters = {}
        for name in ("alpha", "beta", "A", "B", "gamma", "previous_A", "previous_B"):
            if name in t:
                parameters[name] = t[name]
        previous = [t[f"previous_{j + 1}"] for j in range(op.previous)]
        total = residual(t["x"], branch, parameters, previous, axis)
        if op.epilogue == "Relu":
            return [np.maximum(total, 0)]
        if not op.epilogue:
            return [total]
        centred = total
        if op.epilogue == "LayerNorm" and total.size:
            centred = total - total.mean(-1, keepdims=True)
        square = (centred**2).mean(-1, keepdims=True) if total.size else 1.0
        y = centred / np.sqrt(square + EPSILON) * t["scale"] + t.get("offset", 0)
        return [y, total] if self.sum_output else [y]

    def nodes(self, prefix=""):
        """Returns (nodes, initializers, graph inputs, graph outputs, feeds); arrays travel as float32 or float64."""
        wire = np.float64 if self.dtype == "float64" else np.float32
        wire_type = helper.np_dtype_to_tensor_dtype(np.dtype(wire))
        nodes, initializers, inputs, feeds = [], [], [], {}
        for name, values in self.tensors.items():
            is_parameter = name in self.parameter_shapes()
            if is_parameter and self.constant:
                if self.dtype == "bfloat16":
                    tensor = helper.make_tensor(
                        prefix + name, TensorProto.BFLOAT16, values.shape, values.astype(np.float32).ravel().tolist()
                    )
                else:
                    tensor = numpy_helper.from_array(values.astype(ROUNDED[self.dtype]), prefix + name)
                initializers.append(tensor)
                continue
            shape = values.shape if is_parameter else [f"{prefix}d{i}" for i in range(values.ndim)]
            inputs.append(helper.make_tensor_value_info(prefix + name + ".in", wire_type, shape))
            nodes.append(helper.make_node("Cast", [prefix + name + ".in"], [prefix + name], to=ONNX_TYPES[self.dtype]))
            feeds[prefix + name + ".in"] = np.asarray(values, wire)
        results = list(self.op.outputs) if self.sum_output else ["y"]
        attributes = {"epsilon": EPSILON} if self.op.epilogue in ("LayerNorm", "RMSNorm") else {}
        nodes.append(
            helper.make_node(
                self.op.name,
                [prefix + name for name in self.op.inputs],
                [prefix + name for name in results],
                domain=DOMAIN,
                **attributes,
            )
        )
        outputs = []
        for name in results:
            nodes.append(helper.make_node("Cast", [prefix + name], [prefix + name + ".out"], to=wire_type))
            outputs.append(helper.make_tensor_value_info(prefix + name + ".out", wire_type, None))
        return nodes, initializers, inputs, outputs, feeds

    def session(self, threads=1):
        return make_session([self], threads)[0]

    def run(self, threads=1):
        """Returns the kernel's outputs as float32 (or float64) arrays."""
        session, feeds = make_session([self], threads)
        return session.run(None, feeds)


def make_session(cases, threads=1, operators="used"):
    """Returns a session of one model with all *cases* side by side, and its feeds."""
    import onnxruntime as ort

    parts = [case.nodes(f"c{i}." if len(cases) > 1 else "") for i, case in enumerate(cases)]
    nodes, initializers, inputs, outputs = ([item for part in parts for item in part[j]] for j in range(4))
    feeds = {name: value for part in parts for name, value in part[4].items()}
    graph = helper.make_graph(nodes, "battery", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    names = sorted({case.op.name for case in cases}) if operators == "used" else None
    options = session_options(threads=threads, operators=names)
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]), feeds


def residuals():
    """Every combination of RW, LR and PA."""
    for rw in (False, True):
        for lr in (False, True):
            if rw or lr:
                yield {"rw": rw, "lr": lr}
            for k in range(1, 9):
                for low in (False, True):
                    yield {"rw": rw, "lr": lr, "previous": k, "low_rank_previous": low}


def all_operators():
    """Every operator of the set."""
    for parts in residuals():
        for bias in (False, True):
            for epilogue in ("", "LayerNorm", "RMSNorm"):
                yield Operator(**parts, bias=bias, epilogue=epilogue)
        for layout in ("1d", "2d", "3d"):
            for epilogue in ("", "Relu"):
                yield Operator(**parts, layout=layout, epilogue=epilogue)
