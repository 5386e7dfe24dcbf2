"""A term of a person's own in a live model: its own forward runs, with gradients and without."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import laurel_graph as lg

EXAMPLES = str(Path(__file__).parents[3] / "examples")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


@pytest.fixture
def gate(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import gated_residual

    yield gated_residual
    sys.modules.pop("gated_residual", None)


def test_a_gate_is_not_skipped_where_nobody_trains(gate):
    torch.manual_seed(0)
    model, x = nn.Sequential(Block(), Block()).eval(), torch.randn(3, 8)
    before = model(x)
    lg.attach(model, lg.LaurelConfig(variant="rw+gate"), x)
    assert torch.equal(model(x), before)
    for name, parameter in model.named_parameters():
        if name.endswith(".g"):
            nn.init.normal_(parameter)
    trained = model(x)
    assert not torch.allclose(trained, before, atol=1e-3)
    with torch.no_grad():
        assert torch.allclose(model(x), trained, atol=1e-5)
