"""Right files out of the ordinary are accepted: random numbers, empty pasts, short tables of positions;
and few places do not hide a hidden feature."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

import laurel_graph as lg
from laurel_graph.passes.verify.drawing import drawn
from laurel_graph.tools.benchmarks.models import draw_tensors
from laurel_graph.tools.robustness.changed_constants.networks import FLOAT, TOKENS, D, Network


def deployed(folder, model, variant="rw+lr"):
    """Transforms, draws and deploys *model*; returns the trained and the deployed file and what was found."""
    base, trained, served = (folder / f"{name}.onnx" for name in ("base", "trained", "served"))
    onnx.save(model, base)
    lg.transform(base, lg.LaurelConfig(variant=variant, rank=4), output=trained)
    draw_tensors(trained)
    return trained, served, lg.deploy(trained, served).verification


def with_dropout(**attributes):
    net = Network()
    x = "x"
    for _ in range(2):
        x = net.op(
            "Add", x, net.op("Dropout", net.mlp(x), net.const(0.3), net.const(True, np.bool_), outputs=1, **attributes)
        )
    net.op("Identity", x, out="y")
    return net.model([("x", FLOAT, TOKENS)], "y")


@pytest.mark.parametrize("attributes", [{}, {"seed": 7}], ids=["unseeded", "seeded"])
def test_dropout_in_training_draws_the_same_in_both_models(attributes, tmp_path):
    trained, served, _ = deployed(tmp_path, with_dropout(**attributes))
    assert all(site.tolerance < 1e-4 for site in lg.verify(trained, served).sites)


def test_random_numbers_are_no_noise_when_a_model_is_run_again(tmp_path):
    net = Network()
    noisy = net.op("Add", "x", net.op("RandomNormalLike", "x", scale=0.5))
    net.op("Identity", net.blocks(noisy), out="y")
    _, _, found = deployed(tmp_path, net.model([("x", FLOAT, TOKENS)], "y"))
    assert found
    assert all(item.tolerance < 1e-4 for item in (*found.outputs, *found.sites))


def test_an_input_of_size_zero_stays_empty(tmp_path):
    net = Network()
    net.op("Identity", net.blocks(net.op("Concat", "past", "x", axis=1)), out="y")
    model = net.model([("x", FLOAT, TOKENS), ("past", FLOAT, ("n", 0, D))], "y")
    assert deployed(tmp_path, model)[2]


def test_shorter_samples_are_drawn_when_positions_are_few(tmp_path):
    net = Network()
    length = net.op("Gather", net.op("Shape", "ids"), net.const(1, np.int64))
    places = net.op("Range", net.const(0, np.int64), length, net.const(1, np.int64))
    embedded = net.op("Gather", net.weight(20, D, scale=1.0), "ids")
    x = net.op("MatMul", net.op("Add", embedded, net.op("Gather", net.weight(6, D), places)), net.weight(D, D))
    net.op("Identity", net.blocks(x, norm=net.norm), out="y")
    found = deployed(tmp_path, net.model([("ids", TensorProto.INT64, ("n", "t"))], "y"))[2]
    assert found.outputs[0].shape[1] <= 6


@pytest.mark.parametrize("shape", [("n", D), (1, D), (1, 1, D), ("n", 1, D)], ids=str)
def test_every_hidden_feature_is_seen_when_samples_have_few_places(shape):
    net = Network()
    net.op("Relu", net.op("MatMul", "x", net.weight(D, 512)), out="y")
    model = net.model([("x", FLOAT, shape)], "y")
    session = ort.InferenceSession(model.SerializeToString())
    found = drawn(model, lambda x: {"y": session.run(None, x)[0]}, ["y"], [], batches=(1, 3), seed=0, sizes=None)
    assert (np.concatenate([result["y"].reshape(-1, 512) for result in found.results]).max(axis=0) > 0).all()


def cancelling(seed, moved):
    """Two networks with one sum that cancels and moves every feature; the weights of the second differ by *moved*."""
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((16, 1)).astype(np.float32)
    second = (first + 2e-3 * rng.standard_normal((16, 1))).astype(np.float32)
    back = (1e2 * rng.standard_normal((1, 16))).astype(np.float32)
    other = (first * (1 + rng.uniform(-1, 1, first.shape) * moved)).astype(np.float32)
    models = []
    for weight in (first, other):
        net = Network()
        small = net.op("Sub", net.op("MatMul", "x", net.const(weight)), net.op("MatMul", "x", net.const(second)))
        net.op("Add", "x", net.op("MatMul", small, net.const(back)), out="y")
        models.append(net.model([("x", FLOAT, (1, 16))], "y"))
    return models


@pytest.mark.parametrize("seed", [4, 27, 41, 74])
def test_noise_is_measured_again_before_a_model_is_refused_that_is_barely_too_far_apart(seed):
    assert lg.verify(*cancelling(seed, 1.2e-6)).equal
    assert not lg.verify(*cancelling(seed, 1e-4)).equal
