import hashlib

import numpy as np
import onnx
import pytest
from models import ONNX_TYPES, to_tensor
from onnx import TensorProto, helper, numpy_helper

from laurel_graph import onnx_file
from laurel_graph.errors import ModelError, OutputError
from laurel_graph.fingerprint.digest import digest as base_digest
from laurel_graph.onnx_model.tensors import round_to_bfloat16
from laurel_graph.outputs import files
from laurel_graph.outputs.models import write_model


def small_model():
    """y = x @ w + Constant, with weights in every place that tensors lie in."""
    rng = np.random.default_rng(0)
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("sparse", TensorProto.FLOAT, [2], [3.0, 4.0]),
        helper.make_tensor("", TensorProto.INT64, [2], [1, 5]),
        [2, 3],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(4, np.float32), "inner")),
            helper.make_node("Constant", [], ["one"], value_float=1.5),
            helper.make_node("Constant", [], ["many"], value_floats=[1.0, 2.0]),
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Add", ["h", "c"], ["y"]),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(rng.standard_normal((3, 4)).astype(np.float32), "w")],
        sparse_initializer=[sparse],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external_model(folder):
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    onnx.save(small_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.onnx"
    path.write_bytes(small_model().SerializeToString())
    return path


def test_read_gives_the_bytes_back_when_written_unchanged(file, tmp_path):
    write_model(onnx_file.read(file), tmp_path / "out.onnx", source=file)
    assert (tmp_path / "out.onnx").read_bytes() == file.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "small.onnx"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello world\n", "not an ONNX file"),
        (b"PK\x03\x04 a zip file", "not an ONNX file"),
        (b"\x80\x02}q\x00.", "not an ONNX file"),
        (np.random.default_rng(0).bytes(1000), "ONNX"),
        (b"\x08\x08", "no graph"),
    ],
)
def test_read_says_what_is_wrong_when_the_file_is_no_model(content, message, tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        onnx_file.read(path)


def test_read_fails_when_the_file_is_truncated_at_any_byte(file, tmp_path):
    data, path = file.read_bytes(), tmp_path / "cut.onnx"
    for size in range(1, len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(ModelError, match=r"truncated|no graph|no opset"):
            onnx_file.read(path)


def test_read_fails_when_a_name_is_no_text(file):
    file.write_bytes(file.read_bytes().replace(b"MatMul", b"Mat\xfful"))
    with pytest.raises(ModelError, match="not valid UTF-8"):
        onnx_file.read(file)


def test_tensor_array_says_so_when_the_data_does_not_fill_the_shape():
    model = small_model()
    model.graph.initializer[0].raw_data = b"1234"
    with pytest.raises(ModelError, match="tensor 'w' is damaged"):
        onnx_file.tensor_array(model, "w")


def test_read_fails_when_the_path_is_missing_or_a_directory(file, tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        onnx_file.read(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match=r"is a directory.*It holds small.onnx"):
        onnx_file.read(tmp_path)


def test_read_fails_when_external_data_is_missing_or_short(tmp_path):
    path = external_model(tmp_path / "a")
    weights = tmp_path / "a" / "weights.bin"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    with pytest.raises(ModelError, match=r"weights.bin' is truncated"):
        onnx_file.read(path)
    weights.unlink()
    with pytest.raises(ModelError, match=r"lies in the file 'weights.bin'"):
        onnx_file.read(path)


def test_read_fails_when_external_data_has_another_size_than_its_tensor(tmp_path):
    path = external_model(tmp_path / "a")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].dims[0] += 1
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"of shape .* takes \d+ bytes, but \d+ are stated"):
        onnx_file.read(path)


def test_read_leaves_weights_where_they_are_when_data_is_external(tmp_path):
    path = external_model(tmp_path / "a")
    before = digest(tmp_path / "a" / "weights.bin")
    model = onnx_file.read(path)
    assert not model.graph.initializer[0].raw_data
    expected = numpy_helper.to_array(small_model().graph.initializer[0])
    np.testing.assert_array_equal(onnx_file.tensor_array(model, "w", path.parent), expected)
    assert not model.graph.initializer[0].raw_data
    write_model(model, tmp_path / "a" / "b.onnx", source=path)
    assert (tmp_path / "a" / "b.onnx").read_bytes() == path.read_bytes()
    assert digest(tmp_path / "a" / "weights.bin") == before


def test_write_brings_the_weight_file_along_when_the_folder_is_another(tmp_path):
    path = external_model(tmp_path / "a")
    (tmp_path / "b").mkdir()
    model = onnx_file.read(path)
    write_model(model, tmp_path / "b" / "m.onnx", source=path)
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["m.onnx", "weights.bin"]
    assert (tmp_path / "b" / "m.onnx").read_bytes() == path.read_bytes()
    np.testing.assert_array_equal(
        numpy_helper.to_array(onnx.load(tmp_path / "b" / "m.onnx").graph.initializer[0]),
        numpy_helper.to_array(small_model().graph.initializer[0]),
    )
    write_model(model, tmp_path / "b" / "again.onnx", source=path)
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["again.onnx", "m.onnx", "weights.bin"]


def test_write_is_refused_when_the_output_is_a_weight_file(tmp_path):
    path = external_model(tmp_path / "a")
    with pytest.raises(OutputError, match="is the input"):
        write_model(onnx_file.read(path), tmp_path / "a" / "weights.bin", source=path)


def test_write_is_refused_when_the_output_cannot_be_written(file, tmp_path, monkeypatch):
    model = onnx_file.read(file)
    (tmp_path / "link.onnx").symlink_to(file)
    for output, message in [
        (tmp_path, "is a directory"),
        (tmp_path / "none" / "a.onnx", "does not exist"),
        (file, "is the input"),
        (tmp_path / "link.onnx", "is the input"),
    ]:
        with pytest.raises(OutputError, match=message):
            write_model(model, output, source=file)
    before = digest(file)
    monkeypatch.setattr(files.tempfile, "TemporaryFile", lambda **_: (_ for _ in ()).throw(PermissionError(13, "no")))
    with pytest.raises(OutputError, match="cannot be written: no"):
        write_model(model, tmp_path / "b.onnx", source=file)
    assert digest(file) == before and not (tmp_path / "b.onnx").exists()


def test_write_leaves_the_old_file_and_no_rest_when_writing_fails(file, tmp_path, monkeypatch):
    output = tmp_path / "out.onnx"
    output.write_bytes(b"old")

    def fail(self, data):
        self.open("wb").write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Path, "write_bytes", fail)
    with pytest.raises(OutputError, match="No space left"):
        write_model(onnx_file.read(file), output, source=file)
    assert output.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "small.onnx"]


def test_tensor_array_finds_the_value_wherever_it_lies():
    model = small_model()
    assert onnx_file.tensor_array(model, "c").tolist() == [1, 1, 1, 1]
    assert onnx_file.tensor_array(model, "one") == np.float32(1.5)
    assert onnx_file.tensor_array(model, "many").tolist() == [1, 2]
    assert onnx_file.tensor_array(model, "sparse").tolist() == [[0, 3, 0], [0, 0, 4]]
    with pytest.raises(ModelError, match=r"no initializer or constant 'v'.*Near names: w"):
        onnx_file.tensor_array(model, "v")


def test_set_tensor_keeps_everything_but_the_value_when_the_shape_fits():
    model = small_model()
    before = model.SerializeToString()
    onnx_file.set_tensor(model, "w", onnx_file.tensor_array(model, "w").astype(np.float64))
    assert model.SerializeToString() == before
    onnx_file.set_tensor(model, "w", np.full((3, 4), 0.5))
    onnx_file.set_tensor(model, "c", np.arange(4))
    onnx_file.set_tensor(model, "one", np.array(7.0))
    onnx_file.set_tensor(model, "many", np.array([3.0, 4.0]))
    assert model.graph.initializer[0].data_type == TensorProto.FLOAT
    assert (onnx_file.tensor_array(model, "w") == 0.5).all()
    assert onnx_file.tensor_array(model, "c").tolist() == [0, 1, 2, 3]
    assert onnx_file.tensor_array(model, "one") == 7
    assert onnx_file.tensor_array(model, "many").tolist() == [3, 4]
    with pytest.raises(ModelError, match=r"shape \(3, 4\), found a value of shape \(4, 3\)"):
        onnx_file.set_tensor(model, "w", np.zeros((4, 3)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_set_tensor_rounds_to_the_dtype_when_it_is_narrower(dtype):
    model = small_model()
    model.graph.initializer[0].CopyFrom(to_tensor(np.zeros((3, 4)), "w", dtype))
    value = np.random.default_rng(1).standard_normal((3, 4))
    onnx_file.set_tensor(model, "w", value)
    expected = round_to_bfloat16(value) if dtype == "bfloat16" else value.astype(dtype)
    np.testing.assert_array_equal(onnx_file.tensor_array(model, "w"), expected)
    assert model.graph.initializer[0].data_type == ONNX_TYPES[dtype]
    if dtype == "bfloat16":
        theirs = numpy_helper.to_array(to_tensor(value, "w", dtype)).astype(np.float32)
        np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]).astype(np.float32), theirs)


def test_set_tensor_leaves_the_weight_file_alone_when_data_is_external(tmp_path):
    path = external_model(tmp_path / "a")
    before = digest(tmp_path / "a" / "weights.bin")
    model = onnx_file.read(path)
    onnx_file.set_tensor(model, "w", np.full((3, 4), 2.0))
    write_model(model, tmp_path / "a" / "b.onnx", source=path)
    assert digest(tmp_path / "a" / "weights.bin") == before
    assert (numpy_helper.to_array(onnx.load(tmp_path / "a" / "b.onnx").graph.initializer[0]) == 2).all()


def test_fingerprint_is_the_same_when_data_is_external_and_another_when_weights_change(tmp_path):
    path = external_model(tmp_path / "a")
    model, inline = onnx_file.read(path), small_model()
    assert base_digest(model, path.parent) == base_digest(inline)
    inline.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "laurel.a.alpha"))
    assert base_digest(model, path.parent) == base_digest(inline)
    onnx_file.set_tensor(inline, "w", np.zeros((3, 4)))
    assert base_digest(model, path.parent) != base_digest(inline)
