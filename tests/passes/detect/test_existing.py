"""LAuReL blocks of published models: their weights are found, and train."""

import numpy as np
import onnx
import pytest
from models import onnx_text, run_onnx
from onnx import numpy_helper

from laurel_graph.errors import ConfigError
from laurel_graph.passes.detect.existing import existing_blocks
from laurel_graph.passes.rewrite.placing import detect_onnx
from laurel_graph.tools.finetuning.finetune import finetune
from laurel_graph.tools.finetuning.options import FinetuneOptions

WEIGHTS = {"left": (16, 4), "right": (4, 16), "w": (16, 16), "head": (16, 3)}
WEIGHTS |= {"g": np.ones(16, np.float32), "half": np.float32(0.5**0.5)}


def gemma_layer():
    """x + (attention + LAuReL)/√2 of the normed stream, as Gemma 3n has it; a product stands for the attention."""
    text = """(float[n, s, 16] x) => (float[n, s, 3] y) {
        m = LayerNormalization(x, g) low = MatMul(m, left) high = MatMul(low, right)
        normed = LayerNormalization(high, g) block = Add(m, normed)
        h = MatMul(m, w) a = Tanh(h) both = Add(x, a) sum = Add(both, block) out = Mul(sum, half) y = MatMul(out, head)
    }"""
    return onnx_text(text, WEIGHTS, opset=17)


def test_weights_of_a_block_are_found_in_order_when_a_model_has_one_of_its_own():
    found = detect_onnx(gemma_layer())
    laurel = [residual for residual in found.residuals if residual.kind == "laurel"]
    assert [(residual.rank, residual.joins) for residual in laurel] == [(4, ("block",))]
    assert existing_blocks(found) == {laurel[0].site: ("left", "right")}


def test_finetune_trains_them_alone_when_existing_is_asked_for(tmp_path):
    model = gemma_layer()
    onnx.save(model, tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 2, 16)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, target=rng.standard_normal((16, 2, 3)).astype(np.float32))
    options = FinetuneOptions(
        model=tmp_path / "m.onnx", data=str(tmp_path / "d.npz"), loss="mse", tuned=tmp_path / "t.onnx",
        train=("existing",), epochs=2, lr=0.01,
    )  # fmt: skip
    report = finetune(options)
    assert report.further_parameters == 2 * 4 * 16
    before, after = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer}
                     for m in (model, onnx.load(tmp_path / "t.onnx")))  # fmt: skip
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {"left", "right"}
    assert not np.array_equal(run_onnx(onnx.load(tmp_path / "t.onnx"), {"x": x})[0], run_onnx(model, {"x": x})[0])


def test_finetune_says_what_to_do_when_a_model_has_none(tmp_path):
    onnx.save(onnx_text("(float[n, 4] x) => (float[n, 4] y) { m = MatMul(x, w) y = Add(x, m) }", {"w": (4, 4)}),
              tmp_path / "m.onnx")  # fmt: skip
    with pytest.raises(ConfigError, match="laurel transform"):
        finetune(FinetuneOptions(model=tmp_path / "m.onnx", data=str(tmp_path / "d.npz"), loss="mse",
                                 tuned=tmp_path / "t.onnx", train=("existing",)))  # fmt: skip
