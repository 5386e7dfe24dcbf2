"""Reading training data: every form, and what is refused."""

import numpy as np
import pytest

from laurel_graph.errors import ConfigError, DataError
from laurel_graph.tools.finetuning.data import Data, InputSpec, fit_to_inputs, split
from laurel_graph.tools.finetuning.data_files import read_data

X = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
Y = np.array([0, 1, 2, 1])


def assert_same(data):
    assert sorted(data.names) == ["x", "y"] and len(data) == 4
    batch = data.batch([3, 0])
    assert np.array_equal(batch["x"], X[[3, 0]]) and np.array_equal(batch["y"], [1, 0])


def test_npz_gives_its_arrays_when_read(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    assert_same(read_data(str(tmp_path / "d.npz")))


def test_parquet_gives_nested_lists_as_axes_when_read(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table({"x": X.tolist(), "y": Y, "text": list("abcd"), "ragged": [[1], [1, 2], [], [3]]})
    pq.write_table(table, tmp_path / "d.parquet")
    data = read_data(str(tmp_path / "d.parquet"))
    assert_same(data)
    with pytest.raises(DataError, match="'ragged' is there but unusable: its lists differ in length"):
        data.require("ragged", "target")
    with pytest.raises(DataError, match="'text' is there but unusable: element type"):
        data.require("text", "target")


def test_folder_of_arrays_is_mapped_when_read(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    data = read_data(str(tmp_path))
    assert_same(data)
    assert isinstance(data.values("x").base, np.memmap)


def test_folder_of_shards_is_joined_in_order_when_read(tmp_path):
    np.savez(tmp_path / "1.npz", x=X[:3], y=Y[:3])
    np.savez(tmp_path / "2.npz", x=X[3:], y=Y[3:])
    assert_same(read_data(str(tmp_path)))
    np.savez(tmp_path / "3.npz", x=X)
    with pytest.raises(DataError, match=r"3\.npz: 'y' is missing here"):
        read_data(str(tmp_path))


def test_function_gives_arrays_or_samples_when_named(tmp_path, monkeypatch):
    (tmp_path / "my_data.py").write_text(
        "import numpy as np\n"
        "X = np.arange(24, dtype=np.float32).reshape(4, 3, 2)\n"
        "Y = np.array([0, 1, 2, 1])\n"
        "class Samples:\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i): return {'x': X[i], 'y': Y[i]}\n"
        "def arrays(): return {'x': X, 'y': Y}\n"
        "def number(): return 3\n"
        "def broken(): raise OSError('disk is full')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert_same(read_data("my_data:arrays"))
    assert_same(read_data("my_data:Samples"))
    with pytest.raises(DataError, match="expected a mapping from name to array"):
        read_data("my_data:number")
    with pytest.raises(ConfigError, match=r"failed with OSError: disk is full \(.*my_data\.py, line 9\)"):
        read_data("my_data:broken")
    with pytest.raises(ConfigError, match=r"has no function 'array'.*Near names: arrays"):
        read_data("my_data:array")


@pytest.mark.parametrize("name", ["d.csv", "d.npz", "d.parquet", "d.npy"])
def test_read_refuses_with_a_clear_sentence_when_the_file_is_broken(tmp_path, name):
    (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"cannot read data of type|not a readable"):
        read_data(str(tmp_path / name))
    with pytest.raises(DataError, match=r"expected a folder of NAME.npy files|cannot be read|not a readable"):
        read_data(str(tmp_path))


def test_object_arrays_are_refused_by_name_when_needed(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, o=np.array([1, "a", None, 2], dtype=object))
    with pytest.raises(DataError, match="'o' is there but unusable: it holds Python objects"):
        read_data(str(tmp_path / "d.npz")).require("o", "model input")


def test_split_divides_the_samples_when_asked():
    part, held_out = split(Data({"x": np.arange(10.0), "y": np.arange(10)}), 0.3, seed=0)
    assert (len(part), len(held_out)) == (7, 3)
    both = [*part.batch(range(7))["y"], *held_out.batch(range(3))["y"]]
    assert sorted(both) == list(range(10))
    assert held_out.values("y").tolist() == held_out.batch(range(3))["y"].tolist()


def spec(shape, dtype="float32", name="x"):
    return InputSpec(name, np.dtype(dtype), shape)


def test_arrays_come_in_the_model_types_when_they_fit():
    data = Data({"x": np.zeros((4, 3), np.float64), "ids": np.zeros((4, 5), np.int32)})
    assert fit_to_inputs(data, [spec(("N", 3)), spec((None, "L"), "int64", "ids")]) == []
    assert {name: str(array.dtype) for name, array in data.batch([0]).items()} == {"x": "float32", "ids": "int64"}


@pytest.mark.parametrize(
    ("arrays", "specs", "words"),
    [
        ({"x": np.zeros((4, 3))}, [spec(("N", 3), "int64")], "has element type float64, but the model takes int64"),
        ({"x": np.full((4, 3), 300)}, [spec(("N", 3), "uint8")], "outside the range of uint8"),
        ({"x": np.zeros((4, 3))}, [spec(("N", 2))], "axis 1 must be 2, found 3"),
        (
            {"x": np.zeros((4, 3)), "m": np.zeros((4, 2))},
            [spec(("N", "L")), spec(("N", "L"), name="m")],
            "axis 1 of 'm' is 2, but 'x' has 3 for the same dim 'L'",
        ),
    ],
)
def test_arrays_are_refused_with_a_clear_sentence_when_they_do_not_fit(arrays, specs, words):
    with pytest.raises(DataError, match=words):
        fit_to_inputs(Data(arrays, "d.npz"), specs)


def test_fit_says_so_when_a_model_of_floats_is_given_bytes():
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 51
    (line,) = fit_to_inputs(Data({"x": pixels}, "d.npz"), [spec(("N", 3))])
    assert "'x'" in line and "255" in line and "scale" in line
    assert fit_to_inputs(Data({"x": pixels}, "d.npz"), [spec(("N", 3), "int64")]) == []
