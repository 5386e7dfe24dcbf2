"""The tuned graph is held against the module by what the graph's own last bits move."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import onnx_text
from onnx import numpy_helper

from laurel_graph.errors import VerificationError
from laurel_graph.tools.finetuning.agreement import compare

X = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
TASK = SimpleNamespace(inputs=["x"], pick=lambda result: result)


class Off(torch.nn.Module):
    """What the graph means, and a little more."""

    def __init__(self, by):
        super().__init__()
        self.by = torch.nn.Parameter(torch.as_tensor(by))

    def forward(self, x):
        return x + self.by


def graph(size):
    """y = x, by way of numbers of *size* that a norm makes."""
    body = "{ n = LayerNormalization(one, scale, b) s = Add(x, n) y = Sub(s, b) }"
    weights = {"one": np.ones((1, 8), np.float32), "scale": np.ones(8, np.float32), "b": np.full(8, size, np.float32)}
    model = onnx_text(f"(float[n, 8] x) => (float[n, 8] y) {body}", weights, 17)
    del model.graph.node[2].input[1:]
    model.graph.node[2].input.append("c")
    model.graph.initializer.add().CopyFrom(numpy_helper.from_array(weights["b"], "c"))
    return model


def test_a_difference_within_the_graphs_own_noise_is_told(tmp_path):
    difference, notes = compare(Off(5e-4), TASK, graph(3e4), "y", {"x": X}, tmp_path)
    assert 1e-4 < difference < 2e-3
    assert "last bits of the graph's own numbers move it" in notes[0]


def test_the_same_difference_is_refused_when_the_graph_has_no_such_noise(tmp_path):
    with pytest.raises(VerificationError, match=r"differs from the module.*the checkpoint was kept"):
        compare(Off(5e-4), TASK, graph(0), "y", {"x": X}, tmp_path)
    assert compare(Off(0.0), TASK, graph(0), "y", {"x": X}, tmp_path) == (0, [])


def test_places_that_do_not_count_are_left_out(tmp_path):
    by = torch.zeros(4, 8)
    by[:, 3] = 1.0
    mask = (by == 0).numpy()
    assert compare(Off(by), TASK, graph(0), "y", {"x": X}, tmp_path, mask) == (0, [])
    with pytest.raises(VerificationError):
        compare(Off(by), TASK, graph(0), "y", {"x": X}, tmp_path)
