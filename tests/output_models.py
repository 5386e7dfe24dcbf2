"""Small models whose weights lie in files beside them, and what the tests of the outputs ask about a folder."""

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from laurel_graph.adapters import save_adapter
from laurel_graph.config import LaurelConfig
from laurel_graph.passes.pipeline import transform

WIDTH = 24


def plain_model(seed=0):
    """y = x + relu(x u) v."""
    rng = np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array(rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH, name) for name in "uv"
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "u"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["f"]),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in "xy"]
    graph = helper.make_graph(nodes, "plain", infos[:1], infos[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def with_alpha(model, alpha):
    """Returns *model* as if it had been trained to that α."""
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".alpha"):
            tensor.CopyFrom(numpy_helper.from_array(np.float32(alpha), tensor.name))
    return model


def trained_models(folder, location="weights.bin", alphas=(2.0, -3.0), seed=0):
    """Writes ``plain.onnx``, its weights to *location*, and ``t1.onnx``, ``t2.onnx`` on the same weights."""
    folder.mkdir(exist_ok=True)
    (folder / location).parent.mkdir(exist_ok=True)
    path = folder / "plain.onnx"
    model = plain_model(seed)
    onnx.save_model(model, path, save_as_external_data=True, location=location, size_threshold=0)
    transform(path, LaurelConfig(variant="rw", weights="free"), output=folder / "t.onnx")
    for number, alpha in enumerate(alphas, 1):
        trained = with_alpha(onnx.load(folder / "t.onnx", load_external_data=False), alpha)
        onnx.save_model(trained, folder / f"t{number}.onnx")
    (folder / "t.onnx").unlink()
    return [folder / f"t{number}.onnx" for number in range(1, len(alphas) + 1)]


def trained_folder(folder):
    """Writes a model with its weights, an adapter, data and a config; returns name to path."""
    path = trained_models(folder, alphas=(2.0,))[0]
    save_adapter(path, folder / "a.safetensors")
    np.savez(folder / "data.npz", x=np.ones((8, WIDTH), np.float32), t=np.ones((8, WIDTH), np.float32))
    np.savez(folder / "held.npz", x=np.ones((8, WIDTH), np.float32), t=np.ones((8, WIDTH), np.float32))
    (folder / "config.json").write_text(LaurelConfig(variant="rw").to_json())
    return {
        "model": path,
        "plain": folder / "plain.onnx",
        "weights": folder / "weights.bin",
        "adapter": folder / "a.safetensors",
        "data": folder / "data.npz",
        "validation": folder / "held.npz",
        "config": folder / "config.json",
    }


def contents(folder):
    """Returns path to digest of every file under *folder*."""
    files = [Path(where) / name for where, _, names in os.walk(folder) for name in names]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def locations(path):
    """Returns the files that the model *path* keeps weights in."""
    model = onnx.load(path, load_external_data=False)
    return {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}


def value_of(path):
    """Returns what the model computes on a fixed input, read as a user would: weights beside the file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.linspace(-1, 1, 2 * WIDTH, dtype=np.float32).reshape(2, WIDTH)})[0]
