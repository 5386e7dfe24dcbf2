"""Data as people have them: tables, images in folders, data sets of Hugging Face; each mistake is one sentence."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pyarrow as pa
import pytest
from finetune_toy import toy_data, toy_onnx
from PIL import Image

import laurel_graph as lg
from laurel_graph.errors import ConfigError, DataError
from laurel_graph.tools.finetuning.data import InputSpec
from laurel_graph.tools.finetuning.data_files import read_data
from laurel_graph.tools.finetuning.finetune import FinetuneOptions, finetune
from laurel_graph.tools.finetuning.forms.tables import scale_bytes, shaped

NAMES = np.array(["bird", "cat", "dog"])
IMAGE = InputSpec("x", np.dtype(np.float32), (None, 3, 8, 6))
ROW = InputSpec("x", np.dtype(np.float32), (None, 6))


def write_csv(path, count=101, seed=0, label=None):
    batch = toy_data(count, seed).batch(range(count))
    words = NAMES[batch["label"]] if label is None else label(batch["label"])
    lines = [f"{','.join(f'{v:.9g}' for v in row)},{word}" for row, word in zip(batch["x"], words, strict=True)]
    path.write_text("\n".join(["a,b,c,d,e,f,kind", *lines]) + "\n")
    return batch


@pytest.fixture
def options(tmp_path):
    toy_onnx(tmp_path / "base.onnx")
    lg.transform(
        tmp_path / "base.onnx", lg.LaurelConfig(variant="lr", rank=2), output=tmp_path / "model.onnx", run=False
    )
    write_csv(tmp_path / "train.csv")
    write_csv(tmp_path / "valid.csv", 60, 1)
    return FinetuneOptions(
        model=tmp_path / "model.onnx", data=str(tmp_path / "train.csv"), validation=str(tmp_path / "valid.csv"),
        output="probabilities", epochs=1, batch_size=32, quiet=True,
    )  # fmt: skip


def test_a_table_trains_as_the_arrays_that_it_holds(options, tmp_path):
    with pytest.warns(UserWarning, match="'x' is made of a, b, c, d, e, f, in this order"):
        of_table = finetune(options)
    assert "'kind': 0 is bird, 1 is cat, 2 is dog." in of_table.notes
    for name, count, seed in (("train", 101, 0), ("valid", 60, 1)):
        np.savez(tmp_path / f"{name}.npz", **toy_data(count, seed).batch(range(count)))
    data, validation = (str(tmp_path / f"{name}.npz") for name in ("train", "valid"))
    of_arrays = finetune(
        replace(options, data=data, validation=validation, tuned=tmp_path / "other.onnx", checkpoint=None)
    )
    assert of_table.training.history == of_arrays.training.history


def test_numbers_in_a_table_are_a_target_when_named(tmp_path):
    batch = write_csv(tmp_path / "t.csv", label=lambda label: label)
    data = shaped(read_data(str(tmp_path / "t.csv")), (ROW,), "kind")
    np.testing.assert_array_equal(data.batch(range(101))["kind"], batch["label"])
    np.testing.assert_allclose(data.batch(range(101))["x"], batch["x"])
    with pytest.raises(DataError, match="name the column to predict with --target; the columns are a, b"):
        shaped(read_data(str(tmp_path / "t.csv")), (ROW,), None)
    with pytest.raises(DataError, match="no column 'kinds'; it has a, b, c, d, e, f, kind"):
        shaped(read_data(str(tmp_path / "t.csv")), (ROW,), "kinds")
    narrow = InputSpec("x", np.dtype(np.float32), (None, 4))
    with pytest.raises(DataError, match="'x' takes 4 columns, found 6 beside the target 'kind': a, b, c, d, e, f"):
        shaped(read_data(str(tmp_path / "t.csv")), (narrow,), "kind")
    with pytest.raises(DataError, match=r"of shape \(N, D\); 'x' has shape"):
        shaped(read_data(str(tmp_path / "t.csv")), (IMAGE,), "kind")


def test_classes_that_only_validation_has_are_told(options, tmp_path):
    write_csv(tmp_path / "valid.csv", 60, 1, lambda label: np.array(["bird", "cat", "fish"])[label])
    with pytest.raises(DataError, match="'fish', which is no class of the training data, bird, cat, dog"):
        finetune(options)


def test_classes_that_are_not_as_many_as_the_outputs_are_told(options, tmp_path):
    write_csv(tmp_path / "train.csv", label=lambda label: NAMES[np.minimum(label, 1)])
    with pytest.raises(DataError, match=r"2 classes \(bird, cat\), but .* has 3.*--head 2"):
        finetune(replace(options, validation=None))


def test_a_damaged_table_is_told(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(DataError, match=r"not a readable \.csv file with a header"):
        read_data(str(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match="the column 'a' is there twice"):
        read_data(str(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text("a,b,kind\n1,,cat\n2,3,dog\n")
    assert "1 values are missing" in read_data(str(tmp_path / "t.csv")).unusable()


def paint(folder, count=2, size=(6, 8), classes=("cat", "dog")):
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def test_folders_of_images_are_classes(tmp_path):
    data = read_data(str(paint(tmp_path / "train")), (IMAGE,))
    batch = data.batch(range(4))
    np.testing.assert_array_equal(batch["label"], [0, 0, 1, 1])
    assert data.classes == {"label": ("cat", "dog")} and data.notes == []
    pixels = np.asarray(Image.open(tmp_path / "train" / "dog" / "1.png"))
    np.testing.assert_array_equal(batch["x"][3], pixels.transpose(2, 0, 1))
    last = InputSpec("x", np.dtype(np.float32), (None, 8, 6, 3))
    np.testing.assert_array_equal(read_data(str(tmp_path / "train"), (last,)).batch([3])["x"][0], pixels)
    grey = InputSpec("x", np.dtype(np.float32), (None, 1, 8, 6))
    assert read_data(str(tmp_path / "train"), (grey,)).batch([0])["x"].shape == (1, 1, 8, 6)
    scale_bytes(data, (IMAGE,), 255.0, "0.5,0.25,0", "2")
    expected = (pixels / 255 - [0.5, 0.25, 0]) / 2
    np.testing.assert_allclose(data.batch([3])["x"][0], expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-7)


def test_images_of_another_size_are_resized_and_that_is_said(tmp_path):
    data = read_data(str(paint(tmp_path / "train", size=(12, 9))), (IMAGE,))
    assert data.batch([0])["x"].shape == (1, 3, 8, 6) and "9x12 and the like are resized to 8x6" in data.notes[0]


def test_images_that_do_not_do_are_told(tmp_path):
    folder = paint(tmp_path / "train")
    with pytest.raises(DataError, match="the class 'dog' is none of those of the training data, cat"):
        read_data(str(folder), (IMAGE,), {"label": ("cat",)})
    with pytest.raises(DataError, match="goes with a model that takes one image"):
        read_data(str(folder), (ROW,))
    (folder / "dog" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"dog/0.png is no image that can be read .*: mend or delete it"):
        read_data(str(folder), (IMAGE,))
    (folder / "dog" / "0.png").unlink()
    Image.new("RGB", (3, 3)).save(folder / "dog" / "1.png")
    free = InputSpec("x", np.dtype(np.float32), (None, 3, None, None))
    with pytest.raises(DataError, match=r"differ in size, 0\.png is 8x6 and 1\.png 3x3"):
        read_data(str(folder), (free,))
    (folder / "fish").mkdir()
    with pytest.raises(DataError, match="the class folder 'fish' holds no image"):
        read_data(str(folder), (IMAGE,))


def test_a_picture_that_is_cut_off_is_named_when_its_turn_comes(tmp_path):
    folder = paint(tmp_path / "train", size=(60, 80))
    file = folder / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:2000])
    data = read_data(str(folder), (IMAGE,))
    with pytest.raises(DataError, match=r"dog/1.png is no image that can be read"):
        data.batch(range(4))


IMAGES = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[n, 3, 8, 6] x) => (float[n, 4] y)
{
    first = Conv <pads = [1, 1, 1, 1]> (x, w)
    rising = Relu (first)
    second = Conv <pads = [1, 1, 1, 1]> (rising, w)
    sum = Add (x, second)
    flat = Flatten (sum)
    y = MatMul (flat, v)
}
"""


def test_a_model_of_images_trains_on_a_folder_of_them(tmp_path):
    model, rng = onnx.parser.parse_model(IMAGES), np.random.default_rng(0)
    for name, shape in (("w", (3, 3, 3, 3)), ("v", (144, 4))):
        values = (rng.standard_normal(shape) / 8).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, tmp_path / "m.onnx")
    lg.transform(tmp_path / "m.onnx", lg.LaurelConfig(variant="rw"), output=tmp_path / "t.onnx", run=False)
    folder = paint(tmp_path / "train", 3)
    settings = {"epochs": 1, "validation": 0.34, "quiet": True}
    with (
        pytest.warns(UserWarning, match="holds whole numbers from 0 to .*give --scale 255"),
        pytest.raises(DataError, match=r"2 classes .*--head 2"),
    ):
        lg.finetune(tmp_path / "t.onnx", str(folder), tmp_path / "tuned.onnx", **settings)
    scaled = {"head": 2, "scale": 255, "mean": "0.5", "std": "0.25,0.25,0.25"}
    report = lg.finetune(tmp_path / "t.onnx", str(folder), tmp_path / "tuned.onnx", **settings, **scaled)
    assert "'label': 0 is cat, 1 is dog." in report.notes


def test_scale_is_for_bytes(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 6), np.float32), label=np.zeros(4, int))
    with pytest.raises(DataError, match="--scale is for inputs of bytes"):
        scale_bytes(read_data(str(tmp_path / "d.npz")), (ROW,), 255.0, None, None)
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 6), np.uint8), label=np.zeros(4, int))
    with pytest.raises(DataError, match="--mean has 3 numbers"):
        scale_bytes(read_data(str(tmp_path / "d.npz")), (ROW,), 255.0, "1,2,3", None)
    given = {"model": tmp_path / "m.onnx", "data": "d.npz"}
    for wrong in ({"mean": "1"}, {"scale": 0.0}, {"scale": 1.0, "std": "0"}, {"scale": 1.0, "mean": "a"}):
        with pytest.raises(ConfigError, match="scale" if "mean" in wrong and len(wrong) == 1 else "is not valid"):
            FinetuneOptions(**given, **wrong)


def save_to_disk(folder, table, features, indices=()):
    folder.mkdir(parents=True)
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as to,
    ):
        to.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_files": list(indices)}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def test_a_data_set_of_hugging_face_is_read(tmp_path):
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    table = pa.table({"x": rows.tolist(), "label": [0, 1, 1, 0]})
    features = {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}, "x": {"_type": "Sequence"}}
    save_to_disk(tmp_path / "all" / "train", table, features)
    (tmp_path / "all" / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    data = read_data(str(tmp_path / "all" / "train"))
    np.testing.assert_array_equal(data.batch(range(4))["x"], rows)
    assert data.classes == {"label": ("no", "yes")}
    with pytest.raises(DataError, match=r"of several splits; name one of them: .*all/train"):
        read_data(str(tmp_path / "all"))
    save_to_disk(tmp_path / "picked", table, features, [{"filename": "i.arrow"}])
    with pytest.raises(DataError, match=r"flatten_indices\(\)"):
        read_data(str(tmp_path / "picked"))
    (tmp_path / "all" / "train" / "data-00000-of-00001.arrow").write_bytes(b"x")
    with pytest.raises(DataError, match="not a readable Arrow file"):
        read_data(str(tmp_path / "all" / "train"))
