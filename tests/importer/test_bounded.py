"""Sizes that a file merely states are never allocated: constants stay unfolded, inference writes nothing out."""

import onnx
import pytest
import torch
from onnx import parser

import laurel_graph as lg
from laurel_graph.importer.bounded import SMALL, Bounded, TooLarge
from laurel_graph.tools.robustness.mutants import DONE, _in_child

CASES = {
    "zeros": "s = Constant <value_ints = [30000, 30000]> ()  c = ConstantOfShape (s)",
    "identity": """s = Constant <value_ints = [40000, 40000]> ()  a = ConstantOfShape (s)  c = EyeLike (a)""",
    "range": """a = Constant <value_int = 0> ()  b = Constant <value_int = 100000000000> ()
        d = Constant <value_int = 1> ()  e = Range (a, b, d)  c = Cast <to = 1> (e)""",
    "tile": "a = Constant <value_floats = [1.0]> ()  b = Constant <value_ints = [10000000000]> ()  c = Tile (a, b)",
    "expand": """a = Constant <value_floats = [1.0]> ()  b = Constant <value_ints = [1000000, 1000000]> ()
        e = Expand (a, b)  c = Neg (e)""",
    "classes": """a = Constant <value_ints = [1]> ()  b = Constant <value_int = 100000000000> ()
        v = Constant <value_floats = [0.0, 1.0]> ()  c = OneHot (a, b, v)""",
    "outer sum": """a = Constant <value_ints = [100000, 1]> ()  b = Constant <value_ints = [1, 100000]> ()
        e = ConstantOfShape (a)  f = ConstantOfShape (b)  c = Add (e, f)""",
    "filters": """n = Constant <value_int = 100000000> ()  d = Constant <value_int = 1000000000> ()
        s = Constant <value_int = 8000> ()  l = Constant <value_float = 0.0> ()  u = Constant <value_float = 4000.0> ()
        c = MelWeightMatrix (n, d, s, l, u)""",
}


@pytest.mark.parametrize("case", CASES)
def test_memory_stays_small_when_a_file_states_vast_sizes(case, tmp_path):
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    vast (float[N] x) => (float[M] y) {{ {CASES[case]}  r = ReduceSum <keepdims = 0> (c)  y = Add (x, r) }}"""
    onnx.save(parser.parse_model(text), tmp_path / "m.onnx")
    warm = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu (x) }'
    )
    lg.inspect(warm), lg.import_onnx(warm)  # so that a fork has what they import
    idle = _in_child(lambda: None, 20)[2]

    def both():
        lg.inspect(tmp_path / "m.onnx")
        lg.import_onnx(tmp_path / "m.onnx")

    status, detail, growth = _in_child(both, 20)
    assert (status, detail) == (DONE, "")
    assert growth - idle < 400 * 2**20


def test_bounded_lets_results_pass_when_they_are_in_proportion_to_the_arguments():
    with Bounded():
        assert torch.ones(3, 4).sum() == 12
        large = torch.zeros(SMALL)
        assert (large + 1).numel() == SMALL
        with pytest.raises(TooLarge):
            large.repeat(100)
        with pytest.raises(TooLarge):
            torch.zeros(1).expand(10**6, 10**6).clone()
