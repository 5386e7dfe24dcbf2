"""On the way of a file nothing is parsed, inferred, detected or folded twice; each file is read once where it lies."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser, shape_inference

import laurel_graph as lg
from laurel_graph import onnx_file, soundness
from laurel_graph.opset.functions import attach
from laurel_graph.passes import Facts, Pipeline
from laurel_graph.passes.detect import rule
from laurel_graph.passes.files import run_on_file
from laurel_graph.passes.fold import fold as folding
from laurel_graph.passes.standard.changing import Insert
from laurel_graph.passes.standard.comparing import Verify
from laurel_graph.passes.standard.serving import Fold, Fuse

COUNTED = {
    "parse": (onnx_file, "_parse"),
    "check": (soundness, "check"),
    "infer": (shape_inference, "infer_shapes"),
    "detect": (rule, "detect"),
}


@pytest.fixture
def counts(monkeypatch):
    """Word to how often its function was called."""
    found = Counter()

    def counted(word, real):
        def call(*args, **kwargs):
            found[word] += 1
            return real(*args, **kwargs)

        return call

    for word, (module, name) in COUNTED.items():
        monkeypatch.setattr(module, name, counted(word, getattr(module, name)))
    return found


@pytest.fixture
def base(tmp_path):
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        mlp (float[N, 8] x) => (float[N, 8] y) {
          h = MatMul (x, w0)  r = Relu (h)  first = Add (x, r)  z = MatMul (first, w1)  y = Add (first, z) }"""
    )
    rng = np.random.default_rng(0)
    for name in ("w0", "w1"):
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(0, 0.3, (8, 8)).astype(np.float32), name))
    onnx.save(model, tmp_path / "base.onnx")
    return tmp_path / "base.onnx"


def test_inspect_reads_and_infers_once(base, counts):
    lg.inspect(base)
    assert counts == {"parse": 1, "check": 1, "infer": 1, "detect": 1}


def test_transform_reads_the_file_and_what_it_wrote(base, counts, tmp_path):
    lg.transform(base, "rw+lr", output=tmp_path / "t.onnx")
    assert counts == {"parse": 2, "check": 2, "infer": 1, "detect": 1}


def test_deploy_reads_the_file_and_what_it_wrote_and_infers_once(base, counts, tmp_path):
    lg.transform(base, "rw+lr", output=tmp_path / "t.onnx")
    counts.clear()
    lg.deploy(tmp_path / "t.onnx", tmp_path / "d.onnx")
    assert counts == {"parse": 2, "check": 2, "infer": 1}


def test_remove_reads_the_file_and_what_it_wrote(base, counts, tmp_path):
    lg.transform(base, "rw+lr", output=tmp_path / "t.onnx")
    counts.clear()
    lg.remove(tmp_path / "t.onnx", tmp_path / "back.onnx")
    assert counts["parse"] == 2 and not counts["infer"]


def test_the_whole_way_in_one_pipeline_infers_once_for_each_graph(base, counts, tmp_path):
    found = lg.inspect(base)
    counts.clear()
    run_on_file(Pipeline([Insert(), Fold(), Fuse(), Verify()]), base, tmp_path / "d.onnx", facts=Facts(found))
    assert counts == {"parse": 2, "check": 2, "infer": 1}  # the detection is taken: only the new graph is looked at
    counts.clear()
    run_on_file(Pipeline([Insert(), Fold(), Fuse(), Verify()]), base, tmp_path / "d.onnx")
    assert counts == {"parse": 2, "check": 2, "infer": 2, "detect": 1}


def test_types_that_folding_hands_on_are_those_that_inference_finds(base, tmp_path):
    """What is not inferred again is right: the values that folding adds included."""
    from laurel_graph.onnx_model.shapes import tensor_types

    model = lg.transform(base, {"variant": "rw+pa", "per_channel": True}).model
    rng = np.random.default_rng(1)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("laurel."):
            array = rng.uniform(0.5, 1.5, tuple(tensor.dims)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    report = folding.fold(model)
    assert report.multiplied
    attach(model)  # inference passes an operator through its body
    known = tensor_types(model)[0]
    values = {name for node in model.graph.node for name in node.output}
    assert {name: report.types.get(name) for name in values} == {name: known[name] for name in values}
