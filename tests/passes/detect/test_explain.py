"""Explanations: the verdict in words, and the path that it rests on, node by node."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import laurel_graph as lg
from laurel_graph.errors import SelectorError

D = 8


class Net(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.body = forward
        self.a, self.b, self.c = (nn.Linear(D, D) for _ in range(3))
        self.down, self.mid = (nn.Conv2d(D, D, 3, padding=1) for _ in range(2))
        self.pool, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

    def forward(self, x):
        return self.body(self, x)


def explained(forward, x, join):
    return lg.explain(lg.inspect(Net(forward).eval(), x), join)


def values(path):
    return [step.value for step in path.steps]


def test_explanation_shows_skip_and_branch_when_an_add_is_a_residual_connection():
    told = explained(lambda m, x: m.c(x) + m.b(torch.relu(m.a(x))), torch.randn(2, D), "res1")
    assert told.verdict == "residual" and told.reason == "projection"
    assert values(told.paths[0]) == ["x", "c", "add"]
    assert values(told.paths[1]) == ["x", "a", "relu", "b", "add"]
    assert "weights b.weight" in told.paths[1].steps[3].meaning
    assert told.to_dict()["paths"][1]["steps"][0]["value"] == "x"


def test_explanation_passes_the_upsampling_when_a_long_skip_is_rejected():
    told = explained(lambda m, x: x + m.up(m.mid(m.pool(m.down(x)))), torch.randn(1, D, 8, 8), "add")
    assert told.verdict == "rejected" and told.reason == "long-skip"
    assert values(told.paths[1]) == ["x", "down", "pool", "mid", "up", "add"]
    assert told.paths[1].steps[4].meaning == "upsamples"


def test_explanation_says_where_the_skip_ends_and_what_dominates_when_there_is_none():
    told = explained(lambda m, x: torch.relu(m.a(y := m.c(x))) + torch.tanh(m.b(y)), torch.randn(2, D), "add")
    assert told.reason == "no-skip"
    assert any(sentence.endswith("runs through c.") for sentence in told.sentences)
    assert [path.steps[0].meaning for path in told.paths] == ["an activation; no skip leads past it"] * 2


def test_explanation_names_near_adds_when_the_name_is_wrong():
    found = lg.inspect(Net(lambda m, x: x + m.a(x)).eval(), torch.randn(2, D))
    with pytest.raises(SelectorError, match=r"named 'ad'.*Near names: add"):
        lg.explain(found, "ad")
