"""A toy model with LAuReL residuals and toy data; run as a program it trains in a process of its own.

python finetune_toy.py OUT.pt [--checkpoint FILE] [--resume] [--kill-at STEP] [--dropout]
"""

import argparse
import os
import signal
from pathlib import Path

import numpy as np
import torch
from torch import nn

from laurel_graph.config import SiteSpec
from laurel_graph.tools.finetuning.data import Data
from laurel_graph.tools.finetuning.losses import build_loss, build_metric
from laurel_graph.tools.finetuning.task import Task
from laurel_graph.tools.finetuning.train_options import TrainOptions
from laurel_graph.tools.finetuning.training.loop import train
from laurel_graph.torch_residual.module import LaurelResidual, freeze_base

WIDTH, CLASSES = 12, 3


class ToyNet(nn.Module):
    """Two residual layers between two frozen linear ones; ``x (N, 6)`` to logits ``(N, 3)``."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        specs = [SiteSpec(f"layers.{i}", "rw+lr", -1, WIDTH, 2, rank=3) for i in range(2)]
        self.laurel = nn.ModuleList(map(LaurelResidual, specs))
        self.dropout = nn.Dropout(0.2)
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, x):
        x = self.first(x) * self.scale
        for layer, laurel in zip(self.layers, self.laurel, strict=True):
            x = laurel(x, self.dropout(torch.tanh(layer(x))))
        return self.last(x)


def toy_model():
    torch.manual_seed(0)
    model = ToyNet()
    freeze_base(model)
    return model


def toy_data(count=101, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 6)).astype(np.float32)
    return Data({"x": x, "label": np.argmax(x[:, :3] + x[:, 3:], 1)}, "toy")


def toy_task(loss="cross_entropy", metric=None):
    function = build_loss(loss, "label")
    return Task(("x",), function, build_metric(metric, loss, function, "label"))


def toy_onnx(path, batch="N", dtype="float32"):
    """Writes the same kind of network as an ONNX file: ``x (N, 6)`` to ``probabilities (N, 3)`` and ``features``."""
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights, nodes = [], []

    def linear(x, name, d_in, d_out):
        w = rng.standard_normal((d_in, d_out)) / np.sqrt(d_in)
        weights.append(numpy_helper.from_array(w.astype(dtype), f"{name}.weight"))
        weights.append(numpy_helper.from_array((0.1 * rng.standard_normal(d_out)).astype(dtype), f"{name}.bias"))
        nodes.append(helper.make_node("MatMul", [x, f"{name}.weight"], [f"{name}.product"], f"/{name}/MatMul"))
        nodes.append(helper.make_node("Add", [f"{name}.product", f"{name}.bias"], [f"{name}.out"], f"/{name}/Add"))
        return f"{name}.out"

    x = linear("x", "first", 6, WIDTH)
    for i in range(2):
        nodes.append(helper.make_node("Tanh", [linear(x, f"layers.{i}", WIDTH, WIDTH)], [f"f{i}"], f"/layers.{i}/Tanh"))
        nodes.append(helper.make_node("Add", [x, f"f{i}"], [f"x{i}"], f"/layers.{i}/res/Add"))
        x = f"x{i}"
    nodes.append(helper.make_node("Identity", [x], ["features"], "/Identity"))
    logits = linear(x, "last", WIDTH, CLASSES)
    nodes.append(helper.make_node("Softmax", [logits], ["probabilities"], "/Softmax", axis=-1))
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", kind, [batch, 6])],
        [
            helper.make_tensor_value_info("probabilities", kind, [batch, CLASSES]),
            helper.make_tensor_value_info("features", kind, [batch, WIDTH]),
        ],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def trained(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def same_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--signal", type=int, default=int(signal.SIGKILL))
    parser.add_argument("--dropout", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    options = TrainOptions(
        epochs=4, batch_size=16, lr=0.02, checkpoint=args.checkpoint, checkpoint_every=3, resume=args.resume,
        dropout=args.dropout, quiet=True,
    )  # fmt: skip
    model, task, calls = toy_model(), toy_task(), 0
    loss = task.loss

    def counted(output, batch):
        nonlocal calls
        calls += output.requires_grad  # evaluation does not count
        if calls == args.kill_at:
            os.kill(os.getpid(), args.signal)
        return loss(output, batch)

    object.__setattr__(task, "loss", counted)
    train(model, task, toy_data(), toy_data(37, 1), options)
    if int(os.environ.get("RANK", 0)) == 0:
        torch.save(trained(model), args.out)


if __name__ == "__main__":
    main()
