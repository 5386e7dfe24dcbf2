"""Which drawn samples a model is run on, and what is said where it runs on none."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from laurel_graph.errors import ModelError
from laurel_graph.passes.verify import OutputDifference, VerifyReport, verify
from laurel_graph.passes.verify.check import Check
from laurel_graph.passes.verify.drawing import drawn, runnable
from laurel_graph.passes.verify.pair import Pair, Subject

SAMPLE = np.random.default_rng(0)


def decoder():
    """A cache (n, 2, past, 4) that n tokens' keys are put behind."""
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["e"]),
        helper.make_node("Reshape", ["e", "heads"], ["k4"]),
        helper.make_node("Transpose", ["k4"], ["k"], perm=[0, 2, 1, 3]),
        helper.make_node("Concat", ["past", "k"], ["present"], axis=2),
    ]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "tokens"]),
        helper.make_tensor_value_info("past", TensorProto.FLOAT, ["n", 2, "past_length", 4]),
    ]
    outputs = [helper.make_tensor_value_info("present", TensorProto.FLOAT, None)]
    held = [
        numpy_helper.from_array(SAMPLE.standard_normal((9, 8)).astype(np.float32), "words"),
        numpy_helper.from_array(np.array([0, 0, 2, 4]), "heads"),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def result(sample):
    return {"present": np.concatenate([sample["past"].ravel(), SAMPLE.standard_normal(8)]).astype(np.float32)}


def refusing(condition):
    def run(sample):
        if condition(sample):
            raise ModelError("no cache that is empty")
        return result(sample)

    return run


def test_situation_is_left_out_with_its_reason_when_the_model_refuses_it():
    run = refusing(lambda sample: sample["past"].shape[2] == 0)
    found = drawn(decoder(), run, ["present"], [], batches=(1, 3), seed=0, sizes=None)
    assert {sample["past"].shape[2] for sample in found.samples} == {12}
    assert len(found.refused) == 2
    assert all("past_length = 0" in at and reason == "no cache that is empty" for at, reason in found.refused.items())


def test_error_names_dims_sizes_and_ways_out_when_nothing_runs():
    with pytest.raises(ModelError) as caught:
        drawn(decoder(), refusing(lambda sample: True), ["present"], [], batches=(1,), seed=0, sizes=None)
    text = str(caught.value)
    for part in ("--size NAME=N", "--data", "tokens = 16, past_length = 0", "tokens = 1, past_length = 12", "empty"):
        assert part in text


def test_first_sample_that_runs_is_taken_when_earlier_ones_are_refused():
    run = refusing(lambda sample: sample["past"].shape[2] == 0)
    sample = runnable(decoder(), run, batch=2, seed=0, sizes=None)
    assert sample["past"].shape == (2, 2, 12, 4)


def test_noise_is_measured_when_all_weights_are_external(tmp_path):
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["e"]),
        helper.make_node("Mul", ["e", "scale"], ["m"]),
        helper.make_node("MatMul", ["m", "w"], ["y"]),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    held = {"words": (20, 32), "scale": (32,), "w": (32, 8)}
    arrays = {name: SAMPLE.standard_normal(shape).astype(np.float32) for name, shape in held.items()}
    subjects = []
    for file in ("first", "second"):
        graph = helper.make_graph(nodes, "g", [ids], [y], [numpy_helper.from_array(a, n) for n, a in arrays.items()])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path = tmp_path / f"{file}.onnx"
        onnx.save(model, path, save_as_external_data=True, location=f"{file}.data", size_threshold=0)
        subjects.append(Subject(path, onnx.load(path, load_external_data=False)))
        arrays["w"] = arrays["w"] * np.float32(1 + 1e-6)
    found = Check(Pair(*subjects, tolerance=None, usual={"float32": 1e-5})).on_drawn((1, 3), 0, None)
    assert found.algebra["y"].noise > 0
    assert found.outputs["y"].noise > 0


def test_padded_samples_are_drawn_when_only_a_shorter_length_runs():
    model = decoder()
    model.graph.input.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["n", "tokens"]))
    run = refusing(lambda sample: sample["ids"].shape[1] > 8)
    found = drawn(model, run, ["present"], [], batches=(1, 3), seed=0, sizes=None)
    assert any("padded" in at for at in found.situations)
    assert len(found.situations) == len(found.samples)


def two_rows_only(path):
    """A model that says that its batch is free, and runs on two rows alone, which only running it shows."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Einsum", ["one", "h"], ["y"], equation="ab,bc->ac"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    held = [
        numpy_helper.from_array(SAMPLE.standard_normal((4, 4)).astype(np.float32), "w"),
        numpy_helper.from_array(np.ones((1, 2), np.float32), "one"),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_situations_that_were_not_compared_are_told(tmp_path):
    report = verify(two_rows_only(tmp_path / "m.onnx"), tmp_path / "m.onnx", batches=(2, 7))
    assert report and report.situations == ("plain, batch 2 (n = 2)",)
    assert [at for at, _ in report.refused] == ["plain, batch 7 (n = 7)", "plain, batch 24 (n = 24)"]
    assert report.notes[0].startswith("not compared: plain, batch 7 (n = 7): the first model does not run there (")
    assert report.to_dict()["not_compared"][0]["situation"] == "plain, batch 7 (n = 7)"


@pytest.mark.parametrize(
    ("exact", "said"), [(2e-5, "is apart by 1e-06 of the scale, 2e-05 allowed"), (0.5, "nothing is proven")]
)
def test_noise_that_hides_everything_is_said_aloud(exact, said):
    item = OutputDifference("present", "float32", (1,), 3.0, 0.29, False, 2.0, 0.25, 1e-6, exact)
    (note,) = VerifyReport(("a", "b"), 1, (item,)).notes
    assert note.startswith("present: ") and "own noise of 0.25 of the scale" in note and said in note
    many = [replace(item, output=f"present.{i}", noise=0.1 + i / 100) for i in range(1, 9)]
    (note,) = VerifyReport(("a", "b"), 1, tuple(many)).notes
    assert "present.1, present.2" in note and "and 3 more: " in note and "own noise of 0.11 to 0.18 of" in note
    quiet = OutputDifference("present", "float32", (1,), 3.0, 1e-6, False, 2e-5, 1e-7, 1e-6, 2e-5)
    assert VerifyReport(("a", "b"), 1, (quiet,)).notes == ()
