"""``finetune`` on data and code that fail: one sentence with what was found, where, and what to do."""

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import laurel_graph as lg
from laurel_graph.errors import ConfigError, DataError, TrainingError
from laurel_graph.tools.finetuning.data import Data
from laurel_graph.tools.finetuning.data_files import read_data
from laurel_graph.tools.finetuning.finetune import FinetuneOptions, finetune

OWN = """
import numpy as np

def loss_fails(output, batch):
    return output.mean() / {}["none"]

def loss_of_text(output, batch):
    return "0.5"

def metric_of_text(output, batch):
    return "good"

class Broken:
    def __len__(self):
        return 4

    def __getitem__(self, row):
        if row == 2:
            raise OSError("disk on fire")
        return {"ids": np.zeros(5, np.int64), "label": np.zeros(())}

class Texts(Broken):
    def __getitem__(self, row):
        return {"ids": np.zeros(5, np.int64), "label": "good"}

class NoLength(Broken):
    def __len__(self):
        raise RuntimeError("unknown")

def nothing():
    return None
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """y = mean over tokens of a residual MLP on table[ids] + positions[0..T)."""
    path = tmp_path_factory.mktemp("model") / "embedding.onnx"
    rng = np.random.default_rng(0)
    shapes = {"table": (20, 8), "positions": (6, 8), "w": (8, 8), "last": (8, 3)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    weights += [
        numpy_helper.from_array(np.array(v, np.int64).reshape(s), n)
        for n, v, s in (("zero", 0, ()), ("one", 1, ()), ("axis", 1, (1,)))
    ]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"], "/words/Gather"),
        helper.make_node("Shape", ["ids"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["length"]),
        helper.make_node("Range", ["zero", "length", "one"], ["places"]),
        helper.make_node("Gather", ["positions", "places"], ["where"], "/positions/Gather"),
        helper.make_node("Add", ["words", "where"], ["x"]),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Tanh", ["h"], ["f"]),
        helper.make_node("Add", ["x", "f"], ["y"], "/block/Add"),
        helper.make_node("MatMul", ["y", "last"], ["scores"]),
        helper.make_node("ReduceMean", ["scores"], ["out"], axes=[1], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", "T"])]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 3])]
    graph = helper.make_graph(nodes, "embedding", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    lg.transform(path, lg.LaurelConfig(rank=2), output=path.with_name("model.onnx"))
    return path.with_name("model.onnx")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own, ``own_code``, in the current folder."""
    (tmp_path / "own_code.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "own_code.py"
    sys.modules.pop("own_code", None)


def line_of(text):
    return next(i for i, line in enumerate(OWN.splitlines(), 1) if text in line)


def run(model, folder, data, **changes):
    if isinstance(data, dict):
        np.savez(folder / "data.npz", **data)
        data = folder / "data.npz"
    options = {"epochs": 1, "batch_size": 4, "quiet": True, "tuned": folder / "tuned.onnx", **changes}
    return finetune(FinetuneOptions(model=model, data=str(data), **options))


def ids(low=0, high=20, length=5):
    return np.random.default_rng(0).integers(low, high, (8, length))


LABEL = np.zeros(8, np.int64)


def test_finetune_names_the_node_and_the_range_when_ids_are_beyond_the_vocabulary(model, tmp_path, capfd):
    with pytest.raises(DataError, match=r"node '/words/Gather' \(Gather.*\(20, 8\).* from 7\d to 79.*vocabulary"):
        run(model, tmp_path, {"ids": ids(70, 80), "label": LABEL})
    assert not (tmp_path / "tuned.onnx").exists()
    assert "Traceback" not in capfd.readouterr().err


def test_finetune_names_the_node_when_sequences_are_beyond_the_positions(model, tmp_path):
    with pytest.raises(DataError, match=r"node '/positions/Gather'.*\(6, 8\).* from 0 to 8.*table of positions"):
        run(model, tmp_path, {"ids": ids(length=9), "label": LABEL})


def test_finetune_names_the_node_when_only_validation_data_is_beyond_the_vocabulary(model, tmp_path):
    np.savez(tmp_path / "valid.npz", ids=ids(20, 30), label=LABEL)
    with pytest.raises(DataError, match="node '/words/Gather'"):
        run(model, tmp_path, {"ids": ids(), "label": LABEL}, validation=str(tmp_path / "valid.npz"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "own_code:loss_fails"}, rf"failed with KeyError: 'none' .*own_code.py, line {line_of('none')}"),
        ({"loss": "own_code:loss_of_text"}, "must return one number as a tensor, found str"),
        ({"metric": "own_code:metric_of_text", "validation": "0.5"}, "must return one number, found 'good'"),
        ({"loss": "own_code:nowhere"}, "has no function 'nowhere'.*Near names"),
        ({"loss": "no_such_module:loss"}, "module 'no_such_module' cannot be imported"),
    ],
)
def test_finetune_names_the_users_line_when_a_callable_fails(changes, message, model, own):
    with pytest.raises(ConfigError, match=message):
        run(model, own.parent, {"ids": ids(), "label": LABEL}, **changes)


def test_finetune_names_the_users_line_when_a_module_does_not_compile(model, own):
    own.write_text("def loss(output, batch)\n    return 1\n")
    with pytest.raises(ConfigError, match=r"'own_code' cannot be imported \(SyntaxError"):
        run(model, own.parent, {"ids": ids(), "label": LABEL}, loss="own_code:loss")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Broken", rf"sample 2 failed with OSError: disk on fire .*own_code.py, line {line_of('fire')}"),
        ("Texts", "'label' has elements of type <U4; expected numbers"),
        ("NoLength", r"len\(\) failed with RuntimeError: unknown"),
        ("nothing", "expected a mapping from name to array.*found NoneType"),
    ],
)
def test_finetune_names_the_sample_and_the_line_when_a_data_set_fails(name, message, model, own):
    with pytest.raises(DataError, match=message):
        run(model, own.parent, f"own_code:{name}", loss="mse", target="label")


def test_batches_are_of_this_machines_bytes_when_the_file_has_another_order(model, tmp_path):
    arrays = {"ids": ids().astype(">i8"), "label": LABEL.astype(">i4")}
    assert run(model, tmp_path, arrays).training.steps == 2
    batch = read_data(str(tmp_path / "data.npz")).batch([0, 1])
    assert all(array.dtype.isnative for array in batch.values())
    assert np.array_equal(batch["ids"], ids()[:2])


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        (
            {"ids": ids(), "label": np.array(["good", "bad"] * 4)},
            DataError,
            "'label' is there but unusable: element type <U4 is not numeric; numbers are needed for words",
        ),
        ({"ids": ids(), "label": np.array([{}] * 8)}, DataError, "label: it holds Python objects"),
        ({"ids": ids()[:, :0], "label": LABEL}, DataError, r"shape \(N, 0\): axis 1 is empty"),
        ({"ids": ids()[:0], "label": LABEL[:0]}, DataError, "no samples"),
        ({"ids": ids().astype(float), "label": LABEL}, DataError, "element type float64, but the model takes int64"),
        ({"ids": ids(), "label": np.full((8, 3), np.nan)}, TrainingError, "'label' holds NaN or infinity"),
    ],
)
def test_finetune_says_what_is_wrong_with_an_array_when_it_cannot_be_used(arrays, error, message, model, tmp_path):
    loss = "mse" if arrays["label"].dtype.kind == "f" else "cross_entropy"
    with pytest.raises(error, match=message):
        run(model, tmp_path, arrays, loss=loss)


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".csv"])
def test_read_data_refuses_a_file_when_it_is_damaged_or_of_another_form(suffix, tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / f"data{suffix}"
    path.write_bytes(b"PAR1" + bytes(range(256)) + b"PAR1")
    with pytest.raises(DataError, match=r"not a readable|cannot read data of type"):
        read_data(str(path))


def test_data_turns_long_floats_into_what_torch_takes_when_read():
    assert Data({"x": np.zeros((2, 3), np.longdouble)}).batch([0])["x"].dtype == np.float64
