"""Operators on bytes against the formula in float64, on every instruction set."""

import itertools

import numpy as np
import pytest
from onnx import helper, numpy_helper

from laurel_graph import runtime
from laurel_graph.formula import residual
from laurel_graph.opset.functions import attach
from laurel_graph.opset.schema import DOMAIN, VERSION, Operator

built = pytest.mark.skipif(runtime.library_path() is None, reason="the library of kernels is not built")
OPERATORS = [
    Operator(rw=rw, lr=True, epilogue=epilogue, quantized=True) for rw in (False, True) for epilogue in ("", "Relu")
]
SHAPES = [(1, 1), (3, 5), (2, 7, 8), (50, 33), (13, 96), (1, 4, 1000), (300, 256), (7, 2048)]
"""Of x: rows fewer and more than a block, widths below, at and beside whole vectors."""


class Bytes:
    """One operator on random bytes of one type."""

    def __init__(self, op, shape, dtype, rank=4, per_channel=False, seed=0):
        rng = np.random.default_rng(seed)
        self.op, self.shape, self.dtype = op, shape, np.dtype(dtype)
        info, width = np.iinfo(dtype), shape[-1]
        self.arrays = {n: rng.integers(info.min, info.max, shape, endpoint=True).astype(dtype) for n in "xf"}
        scalar = (width,) if per_channel else ()
        shapes = {"alpha": scalar, "beta": scalar, "A": (width, rank), "B": (rank, width)}
        self.parameters = {
            name: (rng.standard_normal(shapes[name]) / np.sqrt(width if name == "A" else rank if name == "B" else 1))
            for name in op.inputs
            if name in shapes
        }
        self.parameters = {name: np.asarray(value, np.float32) for name, value in self.parameters.items()}
        self.quantizers = {
            name: (np.float32(rng.uniform(0.005, 0.05)), self.dtype.type(rng.integers(info.min, info.max)))
            for name in "xfy"
        }

    def exact(self):
        """Returns the output before it is rounded, in float64, with the zero point not yet added."""
        wide = {
            name: (array.astype(np.float64) - int(self.quantizers[name][1])) * np.float64(self.quantizers[name][0])
            for name, array in self.arrays.items()
        }
        total = residual(wide["x"], wide["f"], {k: v.astype(np.float64) for k, v in self.parameters.items()}, [], -1)
        if self.op.epilogue == "Relu":
            total = np.maximum(total, 0)
        return total / np.float64(self.quantizers["y"][0])

    def model(self, computed=()):
        """Returns the model; parameters named in *computed* are inputs of the graph."""
        values = dict(self.parameters)
        for name, (scale, zero) in self.quantizers.items():
            values |= {f"{name}_scale": scale, f"{name}_zero_point": zero}
        kinds = {k: helper.np_dtype_to_tensor_dtype(np.asarray(v).dtype) for k, v in {**values, **self.arrays}.items()}
        open_ = [*self.arrays, *computed]
        graph = helper.make_graph(
            [helper.make_node(self.op.name, self.op.inputs, ["y"], domain=DOMAIN)],
            "bytes",
            [helper.make_tensor_value_info(n, kinds[n], None if n in "xf" else np.shape(values[n])) for n in open_],
            [helper.make_tensor_value_info("y", kinds["x"], None)],
            [numpy_helper.from_array(np.asarray(v), k) for k, v in values.items() if k not in computed],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, VERSION)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def check(self, y):
        """Compares an output: bytes are equal but where the exact value lies at the border of two."""
        exact, zero, info = self.exact(), int(self.quantizers["y"][1]), np.iinfo(self.dtype)
        expected = np.clip(np.rint(exact) + zero, info.min, info.max)
        assert y.dtype == self.dtype
        assert y.shape == self.shape
        off = np.abs(y.astype(np.int64) - expected)
        border = np.abs(exact - np.floor(exact) - 0.5) < 1e-3
        assert off.max(initial=0) <= 1
        assert not np.any(off[~border])


def run(model, feeds, threads=1, kernels=True):
    import onnxruntime as ort

    names = [node.op_type for node in model.graph.node] if kernels else ()
    options = runtime.session_options(threads=threads, operators=names)
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@built
@pytest.mark.parametrize("isa", runtime.available_isas())
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_kernel_equals_formula_when_shapes_vary(isa, dtype, monkeypatch):
    monkeypatch.setenv("LAUREL_ISA", isa)
    for i, (op, shape) in enumerate(itertools.product(OPERATORS, SHAPES)):
        case = Bytes(op, shape, dtype, rank=(1, 4, 16, 33)[i % 4], per_channel=bool(i % 3), seed=i)
        case.check(run(case.model(), case.arrays, threads=1 + i % 2))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_function_body_equals_formula(dtype):
    for i, op in enumerate(OPERATORS):
        case = Bytes(op, (3, 5, 9), dtype, per_channel=bool(i % 2), seed=i)
        model = case.model()
        attach(model)
        case.check(run(model, case.arrays, kernels=False))


@built
def test_kernel_takes_empty_arrays():
    case = Bytes(OPERATORS[0], (0, 8), "uint8")
    assert run(case.model(), case.arrays).shape == (0, 8)


@built
def test_kernel_takes_factors_that_change_between_runs():
    case = Bytes(OPERATORS[1], (5, 24), "int8")
    computed = ("A", "B")
    case.check(run(case.model(computed), {**case.arrays, **{name: case.parameters[name] for name in computed}}))


@built
def test_error_names_the_scale_when_it_is_computed():
    case = Bytes(OPERATORS[0], (5, 24), "uint8")
    with pytest.raises(Exception, match="Laurel_LR_Quantized: f_scale is computed, expected a constant"):
        run(case.model(("f_scale",)), {**case.arrays, "f_scale": case.quantizers["f"][0]})


@built
def test_error_says_what_fits_when_a_scale_is_given_per_channel():
    case = Bytes(OPERATORS[0], (5, 24), "uint8")
    case.quantizers["x"] = (np.ones(24, np.float32), case.quantizers["x"][1])
    with pytest.raises(Exception, match=r"x_scale has shape \(24,\), expected a scalar"):
        run(case.model(), case.arrays)


def test_operator_is_refused_when_it_has_no_quantised_form():
    for parts in ({"rw": True}, {"lr": True, "previous": 1}, {"lr": True, "layout": "2d"}, {"lr": True, "bias": True}):
        with pytest.raises(ValueError, match="quantised"):
            Operator(**parts, quantized=True)
    assert Operator.parse("Laurel_RW_Quantized") is None
    for op in OPERATORS:
        assert Operator.parse(op.name) == op
