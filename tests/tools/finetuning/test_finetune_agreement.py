"""The tuned graph is held against the module within what the last bits of the module's values move."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import onnx_text
from torch import fx

from laurel_graph.errors import VerificationError
from laurel_graph.tools.finetuning.agreement import compare

X = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
TASK = SimpleNamespace(inputs=["x"], pick=lambda result: result)
GRAPH = onnx_text("(float[n, 8] x) => (float[n, 8] y) { y = Identity(x) }", {}, 17)


class Far(torch.nn.Module):
    """x, by way of numbers of another size, and a little more."""

    def __init__(self, size, by=0.0):
        super().__init__()
        self.size = torch.nn.Parameter(torch.tensor(float(size)))
        self.by = torch.nn.Parameter(torch.as_tensor(by))

    def forward(self, x):
        return (x + self.size) - self.size + self.by


def test_a_difference_within_the_modules_own_noise_is_told(tmp_path):
    difference, notes = compare(fx.symbolic_trace(Far(3e4)), TASK, GRAPH, "y", {"x": X}, tmp_path)
    assert 1e-4 < difference < 2e-3
    assert "last bits of its values move the module by" in notes[0]


def test_the_same_difference_is_refused_when_the_module_has_no_such_noise(tmp_path):
    with pytest.raises(VerificationError, match=r"differs from the module.*the checkpoint was kept"):
        compare(fx.symbolic_trace(Far(0, 1e-3)), TASK, GRAPH, "y", {"x": X}, tmp_path)
    assert compare(fx.symbolic_trace(Far(0)), TASK, GRAPH, "y", {"x": X}, tmp_path) == (0, [])


def test_places_that_do_not_count_are_left_out(tmp_path):
    by = torch.zeros(4, 8)
    by[:, 3] = 1.0
    module = fx.symbolic_trace(Far(0, by))
    assert compare(module, TASK, GRAPH, "y", {"x": X}, tmp_path, (by == 0).numpy()) == (0, [])
    with pytest.raises(VerificationError):
        compare(module, TASK, GRAPH, "y", {"x": X}, tmp_path)
