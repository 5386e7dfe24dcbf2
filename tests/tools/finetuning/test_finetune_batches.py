"""``finetune`` on files that hold a batch size inside, and what it says of rates and of the epoch that it kept."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import laurel_graph as lg
from laurel_graph.tools.finetuning import onnx_task
from laurel_graph.tools.finetuning.finetune import FinetuneOptions, finetune


def batch_inside(path, size, width=8):
    """A file whose input leaves the batch open and whose Reshape holds one."""
    rng = np.random.default_rng(0)
    shape = numpy_helper.from_array(np.array([size, 4, width], np.int64), "shape")
    weights = [numpy_helper.from_array(rng.normal(0, 0.3, s).astype(np.float32), n)
               for n, s in (("w", (width, width)), ("last", (width, 3)))]  # fmt: skip
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["f"]),
        helper.make_node("Add", ["r", "f"], ["y"], name="join"),
        helper.make_node("MatMul", ["y", "last"], ["out"]),
    ]
    values = [("x", ["batch", 4, width]), ("out", [None, 4, 3])]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in values]
    graph = helper.make_graph(nodes, "inside", infos[:1], infos[1:], [shape, *weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.parametrize("size", [1, 4, -1])
def test_a_file_with_a_batch_inside_is_trained_in_pieces_of_it(tmp_path, size):
    batch_inside(tmp_path / "m.onnx", size)
    lg.transform(tmp_path / "m.onnx", "rw+lr", output=tmp_path / "t.onnx", run=size > 0)
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(7, 4, d)).astype(np.float32) for d in (8, 3))
    np.savez(tmp_path / "d.npz", x=x, y=y)
    report = finetune(
        FinetuneOptions(
            model=tmp_path / "t.onnx", data=str(tmp_path / "d.npz"), loss="mse", epochs=3, tuned=tmp_path / "o.onnx",
            validation="0.3", quiet=True,
        )
    )  # fmt: skip
    assert any(f"a batch of {size}" in note for note in report.notes) == (size > 0)
    assert report.training.after[0] < report.training.before[0]


def test_a_rate_that_is_far_from_usual_is_said_before_training(tmp_path):
    batch_inside(tmp_path / "m.onnx", -1)
    lg.transform(tmp_path / "m.onnx", "rw+lr", output=tmp_path / "t.onnx", run=False)
    np.savez(tmp_path / "d.npz", x=np.ones((4, 4, 8), np.float32), y=np.ones((4, 4, 3), np.float32))
    options = FinetuneOptions(
        model=tmp_path / "t.onnx", data=str(tmp_path / "d.npz"), loss="mse", epochs=1, lr=1e-9, quiet=True
    )
    with pytest.warns(UserWarning, match=r"--lr 1e-09 is far from the usual"):
        finetune(options)
    assert FinetuneOptions(model=tmp_path / "t.onnx", data="d.npz").odd_rate() is None


def test_the_start_is_said_to_be_what_was_kept_when_no_epoch_was_better(tmp_path):
    batch_inside(tmp_path / "m.onnx", -1)
    lg.transform(tmp_path / "m.onnx", "rw", output=tmp_path / "t.onnx", run=False)
    x = np.random.default_rng(0).normal(size=(6, 4, 8)).astype(np.float32)
    out = onnx_task.run(onnx.load(tmp_path / "m.onnx"), ["out"], {"x": x}, tmp_path)[0]
    np.savez(tmp_path / "d.npz", x=x, y=out + np.float32(0))
    np.savez(tmp_path / "train.npz", x=x, y=out * 3)
    report = finetune(
        FinetuneOptions(
            model=tmp_path / "t.onnx", data=str(tmp_path / "train.npz"), validation=str(tmp_path / "d.npz"),
            loss="mse", epochs=2, lr=0.05, quiet=True,
        )
    )  # fmt: skip
    assert report.training.best_epoch == 0 and any("the tuned file is the start" in note for note in report.notes)
