"""Patterns that are, or only look like, residual connections: every one in every form that a front end meets.

All patterns stand side by side in one model, each on an input of its own, so that one export a form serves them all.
"""

import io
from collections import defaultdict
from functools import cache

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from laurel_graph.graph_view import Role
from laurel_graph.passes.detect.rule import detect
from laurel_graph.passes.read_fx.capture import capture
from laurel_graph.passes.read_onnx.view import view_of
from laurel_graph.tools.zoo.kinds import optimised, without_shapes

D = 8
TOKENS = (2, 4, D)
IMAGE = (2, D, 8, 8)


LAYERS = {
    **dict.fromkeys(("a", "b", "c", "d", "e", "q", "k", "v"), lambda: nn.Linear(D, D)),
    **dict.fromkeys(("n1", "n2"), lambda: nn.LayerNorm(D)),
    **dict.fromkeys(("c1", "c2", "c3"), lambda: nn.Conv2d(D, D, 3, padding=1)),
    **dict.fromkeys(("bn1", "bn2", "bn3"), lambda: nn.BatchNorm2d(D)),
    "one": lambda: nn.Linear(D, 1),
    "wide": lambda: nn.Linear(D, 2 * D),
    "narrow": lambda: nn.Linear(2 * D, D),
    "mix": lambda: nn.Linear(4, 4),
    "point": lambda: nn.Conv2d(D, D, 1),
    **dict.fromkeys(("grow", "grow2"), lambda: nn.Conv2d(D, D + 2, 1)),
    "down": lambda: nn.Conv2d(D, D, 3, 2, 1),
    "down1": lambda: nn.Conv2d(D, D, 1, 2),
    **dict.fromkeys(("up", "up2"), lambda: nn.ConvTranspose2d(D, D, 2, 2)),
    "shuffled": lambda: nn.Conv2d(D, 4 * D, 3, padding=1),
    "gates": lambda: nn.Linear(D, 4 * D),
    "recurrent_gates": lambda: nn.Linear(D, 4 * D),
    "gamma": lambda: nn.Parameter(torch.rand(D)),
    "table": lambda: nn.Parameter(torch.randn(4, D)),
    "w8": lambda: nn.Parameter(torch.randint(-9, 9, (D, D), dtype=torch.int8), requires_grad=False),
}


def swapped(x):
    return x.transpose(-1, -2)


class Layers(nn.Module):
    """One pattern and the layers it uses; a layer comes to be when the pattern first asks for it."""

    def __init__(self, pattern, x):
        super().__init__()
        self.pattern = pattern
        with torch.no_grad():
            self(x)

    def __getattr__(self, name):
        if name in LAYERS and name not in self._modules and name not in self._parameters:
            made = LAYERS[name]()
            (self._modules if isinstance(made, nn.Module) else self._parameters)[name] = made
        return super().__getattr__(name)

    def forward(self, x):
        return self.pattern(self, x)

    def f(self, x):
        return self.b(torch.relu(self.a(x)))

    def attention(self, x, memory=None):
        memory = x if memory is None else memory
        return torch.softmax(self.q(x) @ swapped(self.k(memory)) * 0.35, -1) @ self.v(memory)

    def convs(self, x):
        return self.c2(torch.relu(self.bn1(self.c1(x))))


# Residual connections: pattern, shape of its input, kind and number of branches of each join --------------------------


def in_place(m, x):
    y = m.f(m.n1(x))
    y += x
    return m.n2(y)


def cross_streams(m, x):
    left, right = m.q(x), m.k(x).relu()
    return torch.cat([left + m.attention(left, right), right + m.c(m.attention(right, left))], -1)


def two_calls(m, x):
    for _ in range(2):
        x = x + m.f(m.n1(x))
    return x


def dual_path(m, x):
    both = m.grow(x)
    out = m.grow2(m.convs(both[:, :D]))
    return torch.cat([both[:, :D] + out[:, :D], both[:, D:], out[:, D:]], 1)


def stochastic_depth(m, x):
    keep = torch.floor(torch.rand(2, 1, 1) + 0.9)
    return x + m.f(x) / 0.9 * keep


def windows(m, x):
    y = m.bn1(x).roll((1, 1), (2, 3)).permute(0, 2, 3, 1).reshape(8, 4, 4, D).reshape(8, 16, D)
    y = m.attention(y).reshape(2, 8, 8, D).permute(0, 3, 1, 2).roll((-1, -1), (2, 3))
    return x + y


def preactivation(m, x):
    y = torch.relu(m.bn1(x))
    return m.down1(y) + m.c2(torch.relu(m.bn2(m.down(y))))


def diffusion_block(m, x):
    time = m.a(x.mean((2, 3)))[:, :, None, None]
    return x + m.c2(F.silu(m.bn2(m.c1(F.silu(m.bn1(x))) + time)))


def adaptive_norm(m, x):
    condition = x.mean(1, True)
    shift, scale, gate = m.a(condition), m.b(condition), m.c(condition)
    return x + gate * m.f(m.n1(x) * (1 + scale) + shift)


def attention_at_half_resolution(m, x):
    y = swapped(m.down(x).flatten(2))
    y = swapped(m.attention(y)).reshape(2, D, 4, 4)
    return x + m.point(F.relu(F.interpolate(y, scale_factor=2.0)))


def calibrated(m, x):
    y = m.point(x)
    gate = torch.sigmoid(F.interpolate(m.c3(F.avg_pool2d(y, 2)), scale_factor=2.0))
    return x + m.c2(torch.relu(m.c1(y) * gate))


def twice(x):
    return F.interpolate(x, scale_factor=2.0)


def upsampling(m, x):
    return m.point(twice(x)) + m.c2(torch.relu(m.bn2(m.c1(twice(torch.relu(m.bn1(x)))))))


def transposed(m, x):
    return m.up(x) + m.c2(torch.relu(m.bn2(m.up2(torch.relu(m.bn1(x))))))


def super_resolution(m, x):
    y = m.point(x)
    y = y + m.c2(torch.relu(m.c1(y)))
    return twice(x) + F.pixel_shuffle(m.shuffled(torch.relu(y)), 2)


def reversible(m, x):
    one, two = m.q(x[:, :2]), m.k(x[:, 2:])
    one = one + m.c(torch.tanh(two))
    two = two + m.d(torch.tanh(one))
    one = one + m.a(torch.tanh(two))
    return torch.cat([one, two + m.b(torch.tanh(one))], 1)


def conditioned(m, x):
    condition, x = m.k(x[:, 2:]).relu(), m.q(x[:, :2])
    x = x + m.b(torch.relu(m.a(x + condition)))
    return m.v(x) + m.d(torch.relu(m.c(x) + condition))


def two_way(m, x):
    keys, queries = m.q(x[:, :2]), m.k(x[:, 2:])
    place = m.v(x[:, 2:]).sin()
    queries = queries + m.a(m.attention(queries, keys + place))
    keys = keys + m.b(m.attention(keys + place, queries))
    return m.c(m.attention(queries, keys))


def edges(m, x):
    edge, node = m.k(x[:, 2:]).relu(), m.q(x[:, :2])
    node = node + m.b(torch.relu(m.a(torch.relu(node.roll(1, 1) + m.c(edge)))))
    return m.v(torch.relu(node.roll(1, 1) + m.d(edge)))


def edges_as_they_are(m, x):
    edge, node = m.k(x[:, 2:]).relu(), m.q(x[:, :2])
    node = node + m.b(torch.relu(m.a(torch.relu(node.roll(1, 1) + edge))))
    return m.v(torch.relu(node.roll(1, 1) + edge))


one = [("identity", 1)]
projected = [("projection", 1)]
RESIDUALS = {
    "plain": (lambda m, x: x + m.f(x), TOKENS, one),
    "post_norm": (lambda m, x: m.n2(m.n1(x + m.f(x)) + m.attention(m.n1(x))), TOKENS, one),
    "layer_scale": (lambda m, x: x + m.gamma * m.f(m.n1(x)), TOKENS, one),
    "half_skip": (lambda m, x: x * 0.5 + m.f(x), TOKENS, one),
    "moving_average": (lambda m, x: 0.9 * x + 0.1 * m.f(x), TOKENS, one),
    "alpha": (lambda m, x: torch.add(x, m.f(x), alpha=0.25), TOKENS, one),
    "in_place": (in_place, TOKENS, one),
    "parallel": (lambda m, x: x + m.attention(m.n1(x)) + m.f(m.n1(x)), TOKENS, [("identity", 2)]),
    "three_branches": (lambda m, x: x + m.f(x) + m.attention(x) + m.c(torch.tanh(x)), TOKENS, [("identity", 3)]),
    "nested": (lambda m, x: x + m.c((y := m.f(x)) + m.attention(y)), TOKENS, one * 2),
    "again": (lambda m, x: x + m.c(torch.tanh(x + m.f(x))), TOKENS, one * 2),
    "two_calls": (two_calls, TOKENS, one * 2),
    "cross_streams": (cross_streams, TOKENS, one * 2),
    "gated_mlp": (lambda m, x: x + m.c(F.silu(m.a(m.n1(x))) * m.b(m.n1(x))), TOKENS, one),
    "token_mixing": (lambda m, x: x + swapped(m.mix(torch.relu(m.mix(swapped(m.n1(x)))))), TOKENS, one),
    "experts": (
        lambda m, x: x + ((g := torch.softmax(m.c(x), -1))[..., :1] * m.f(x) + g[..., 1:2] * m.q(F.silu(m.k(x)))),
        TOKENS, one,
    ),
    "stochastic_depth": (stochastic_depth, TOKENS, one),
    "integer_weights": (lambda m, x: x + x @ (m.w8.float() * 0.01), TOKENS, one),
    "embedded": (lambda m, x: m.n1((y := x + m.table) + m.f(y)), TOKENS, one),
    "adaptive_norm": (adaptive_norm, TOKENS, one),
    "masked": (lambda m, x: x + m.f(x).masked_fill(x[..., :1] > 0, 0.0), TOKENS, one),
    "images": (lambda m, x: torch.relu(x + m.convs(x)), IMAGE, one),
    "excited": (lambda m, x: x + (y := m.convs(x)) * torch.sigmoid(m.point(y.mean((2, 3), True))), IMAGE, one),
    "windows": (windows, IMAGE, one),
    "dual_path": (dual_path, IMAGE, one),
    "diffusion_block": (diffusion_block, IMAGE, one),
    "attention_at_half_resolution": (attention_at_half_resolution, IMAGE, one),
    "calibrated": (calibrated, IMAGE, one),
    "downsampling": (
        lambda m, x: torch.relu(m.bn3(m.down1(x)) + m.bn2(m.c2(torch.relu(m.bn1(m.down(x)))))), IMAGE,
        [("projection", 1)],
    ),
    "preactivation": (preactivation, IMAGE, projected),
    "upsampling": (upsampling, IMAGE, projected),
    "upsampled_as_it_is": (lambda m, x: twice(x) + m.c2(F.silu(m.c1(twice(F.silu(x))))), IMAGE, projected),
    "transposed": (transposed, IMAGE, projected),
    "super_resolution": (super_resolution, IMAGE, one + projected),
    "reversible": (reversible, TOKENS, one * 3),
    "conditioned": (conditioned, TOKENS, one + projected),
    "two_way": (two_way, TOKENS, one * 2),
    "edges": (edges, TOKENS, one),
    "edges_as_they_are": (edges_as_they_are, TOKENS, one),
}  # fmt: skip


# No residual connections: pattern, shape of its input, a reason that must be named ------------------------------------


def u_net(m, x):
    y = torch.relu(m.c1(F.max_pool2d(x, 2)))
    return m.c3(x + m.c2(F.interpolate(y, scale_factor=2.0)))


def deep_u_net(m, x):
    low = torch.relu(m.down(x))
    lowest = torch.relu(m.c1(F.max_pool2d(low, 2)))
    low = torch.relu(m.bn1(m.c2(F.interpolate(lowest, scale_factor=2.0)) + low))
    return m.c3(x + torch.relu(m.bn2(m.point(m.up(low)))))


def pyramid(m, x):
    high = torch.relu(m.c1(x))
    low = torch.relu(m.c2(F.max_pool2d(high, 2)))
    return m.c3(m.point(high) + F.interpolate(m.down1(F.interpolate(low, scale_factor=2.0)), scale_factor=2.0))


def highway(m, x):
    gate = torch.sigmoid(m.a(x))
    return m.n1(gate * torch.relu(m.b(x)) + (1 - gate) * x)


def recurrent_cell(m, x):
    state = m.a(x)
    return m.n1(state + torch.sigmoid(m.b(state)) * (torch.tanh(m.c(state)) - state))


def rotary(m, x):
    y = m.a(x)
    half = torch.cat([-y[..., 4:], y[..., :4]], -1)
    return m.b(y * m.table.cos() + half * m.table.sin())


def experts(m, x):
    weights = torch.softmax(m.c(x), -1)
    return m.n1(weights[..., :1] * m.f(x) + weights[..., 1:2] * m.v(F.silu(m.q(x))))


def input_in_every_layer(m, x):
    x = m.q(x)
    y = torch.relu(m.a(torch.relu(m.k(x))) + m.b(x))
    y = torch.relu(m.c(y) + m.d(x))
    return m.v(y) + m.e(x)


def gru(m, x):
    state = torch.tanh(m.q(x[:, 0]))
    for step in (1, 2, 3):
        reset, update = torch.sigmoid(m.a(x[:, step]) + m.b(state)), torch.sigmoid(m.c(x[:, step]) + m.d(state))
        state = (1 - update) * torch.tanh(m.e(x[:, step]) + reset * m.k(state)) + update * state
    return state


def lstm(m, x):
    state, cell = torch.tanh(m.q(x[:, 0])), torch.tanh(m.a(x[:, 0]))
    for step in (1, 2):
        gates = m.gates(x[:, step]) + m.recurrent_gates(state)
        put, forget, new, out = gates.chunk(4, -1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(put) * torch.tanh(new)
        state = torch.sigmoid(out) * torch.tanh(cell)
    return m.b(state)


def lstm_of_a_layer_below(m, x):
    below = torch.relu(m.q(x))
    gates = m.gates(below) + m.recurrent_gates(torch.tanh(m.a(below)))
    put, forget, new, out = gates.chunk(4, -1)
    return m.b(torch.sigmoid(out) * torch.tanh(torch.sigmoid(forget) * below + torch.sigmoid(put) * torch.tanh(new)))


def recurrent(m, x):
    state = torch.tanh(m.q(x[:, 0]))
    for step in (1, 2):
        state = torch.tanh(m.a(x[:, step]) + m.b(state))
    return state


def gated_convolution(m, x):
    condition = torch.relu(m.q(x))
    return m.v(torch.tanh(m.a(x) + m.b(condition)) * torch.sigmoid(m.c(x) + m.d(condition)))


def style_outputs(m, x):
    y = torch.relu(m.c1(F.interpolate(x, scale_factor=2.0)))
    return torch.cat([F.interpolate(m.point(x), scale_factor=2.0) + m.c3(m.c2(y)), y], 1)


def scores(m, x):
    logits = m.q(x) @ swapped(m.k(x))
    return torch.softmax((logits + m.mix(torch.relu(m.mix(logits)))).masked_fill(logits > 1, -9.0), -1) @ m.v(x)


REJECTED = {
    "u_net": (u_net, IMAGE, "long-skip"),
    "deep_u_net": (deep_u_net, IMAGE, "long-skip"),
    "pyramid": (pyramid, IMAGE, "long-skip"),
    "input_in_every_layer": (input_in_every_layer, TOKENS, "condition"),
    "gru": (gru, TOKENS, "gate other-part"),
    "lstm": (lstm, TOKENS, "gate other-part"),
    "lstm_of_a_layer_below": (lstm_of_a_layer_below, TOKENS, "gate"),
    "recurrent": (recurrent, TOKENS, "other-part"),
    "gated_convolution": (gated_convolution, TOKENS, "gate parallel-maps"),
    "style_outputs": (style_outputs, IMAGE, ""),
    "highway": (highway, TOKENS, "gate no-skip"),
    "recurrent_cell": (recurrent_cell, TOKENS, "gate"),
    "squeeze_excite": (lambda m, x: x + x * torch.sigmoid(m.point(x.mean((2, 3), True))), IMAGE, "gate"),
    "position": (lambda m, x: m.a(x + m.table), TOKENS, "bias broadcast"),
    "rotary": (rotary, TOKENS, "no-weighted-op no-skip"),
    "written_gelu": (
        lambda m, x: (y := m.a(x)) * (1 + torch.tanh(y + 0.045 * y**3)), TOKENS, "no-weighted-op",
    ),
    "experts_alone": (experts, TOKENS, "no-skip"),
    "shared_expert": (lambda m, x: m.n1(m.f(x) + torch.sigmoid(m.one(x)) * m.v(F.silu(m.q(x)))), TOKENS, "no-skip"),
    "scores": (scores, TOKENS, "logits-bias"),
    "scores_chosen": (
        lambda m, x: torch.where((y := m.f(x)) > 0, y + m.c(torch.tanh(y)), y).topk(2, -1).indices, TOKENS,
        "logits-bias",
    ),
    "reparameterised": (
        lambda m, x: torch.relu(m.bn1(m.c1(x)) + m.bn2(m.point(x))), IMAGE, "parallel-maps",
    ),
    "modulated": (
        lambda m, x: m.n1(torch.tanh(m.q(x)) * (1 + m.a(y := torch.relu(m.c(x)))) + m.b(y)), TOKENS, "parallel-maps",
    ),
    "two_heads": (lambda m, x: m.c(x) + m.c(m.f(x)), TOKENS, "shared-map"),
    "concatenated": (lambda m, x: m.narrow(torch.cat([x, m.f(x)], -1)), TOKENS, ""),
    "doubled": (lambda m, x: m.a((y := m.b(x)) + y), TOKENS, "same-operand"),
    "time_embedding": (
        lambda m, x: m.c1(x) + m.a(x.mean((2, 3)))[:, :, None, None], IMAGE,
        "broadcast parallel-maps",
    ),
    "coupling": (
        lambda m, x: torch.cat([(y := m.wide(x))[..., :D] + m.f(y[..., D:]), y[..., D:]], -1), TOKENS, "other-part",
    ),
    "coupling_read_again": (
        lambda m, x: m.narrow(torch.cat([z := (y := m.wide(x))[..., :D] + m.f(y[..., D:]), z], -1) * torch.tanh(y)),
        TOKENS, "other-part",
    ),
    "towers": (lambda m, x: m.f(x) + m.k(F.silu(m.q(x))), TOKENS, "no-skip"),
    "mamba_skip": (lambda m, x: m.c((y := m.a(x)) * m.gamma + m.attention(y)), TOKENS, "scaled-skip"),
}  # fmt: skip

PATTERNS = {**RESIDUALS, **REJECTED}


class All(nn.Module):
    """Every pattern on an input of its own."""

    def __init__(self, inputs):
        super().__init__()
        self.parts = nn.ModuleDict({name: Layers(PATTERNS[name][0], x) for name, x in inputs.items()})

    def forward(self, *inputs):
        return tuple(part(x) for part, x in zip(self.parts.values(), inputs, strict=True))


# The forms ------------------------------------------------------------------------------------------------------------


@cache
def model():
    torch.manual_seed(0)
    inputs = {name: torch.randn(shape) for name, (_, shape, _) in PATTERNS.items()}
    return All(inputs).eval(), tuple(inputs.values())


@cache
def program():
    module, inputs = model()
    return torch.export.export(module, inputs, strict=False)


@cache
def dynamo():
    return torch.onnx.export(program(), dynamo=True, verbose=False).model_proto


def torchscript(opset):
    module, inputs = model()
    file = io.BytesIO()
    torch.onnx.export(module, inputs, file, dynamo=False, verbose=False, opset_version=opset)
    return onnx.load_from_string(file.getvalue())


def symbolic():
    module, inputs = model()
    return [capture(part, (x,)).view for part, x in zip(module.parts.values(), inputs, strict=True)]


FORMS = {
    "symbolic": lambda folder: symbolic(),
    "export": lambda folder: [capture(program()).view],
    "decomposed": lambda folder: [capture(program().run_decompositions()).view],
    "dynamo": lambda folder: [view_of(dynamo())],
    "dynamo without shapes": lambda folder: [view_of(without_shapes(dynamo()))],
    "optimised": lambda folder: [view_of(optimised(dynamo(), folder))],
    "optimised without shapes": lambda folder: [view_of(without_shapes(optimised(dynamo(), folder)))],
    "opset 9": lambda folder: [view_of(torchscript(9))],
    "opset 17": lambda folder: [view_of(torchscript(17))],
}


def verdicts(views):
    """Returns pattern to kind and number of branches of its joins, and pattern to the reasons of its other adds."""
    names = iter(PATTERNS)
    found, reasons = defaultdict(list), defaultdict(set)
    for view in views:
        origins, adds = [], {}
        for index, vertex in enumerate(view.vertices):
            own = {next(names)} if vertex.role is Role.INPUT else set()
            origins.append(own.union(*(origins[u] for u in vertex.inputs)))
            if vertex.role is Role.ADD:
                adds.setdefault(vertex.key, index)
                adds.setdefault(vertex.name, index)
        detection = detect(view)
        for residual in detection.residuals:
            (pattern,) = origins[adds[residual.joins[0]]]
            found[pattern].append((residual.kind, len(residual.branches)))
        for rejected in detection.rejected:
            for pattern in origins[adds[rejected.join]]:
                reasons[pattern].add(rejected.reason)
    return found, reasons


@pytest.fixture(scope="module", params=FORMS)
def seen(request, tmp_path_factory):
    return verdicts(FORMS[request.param](tmp_path_factory.mktemp("optimised")))


@pytest.mark.parametrize("name", RESIDUALS)
def test_detect_finds_every_join_of_a_pattern_in_every_form(name, seen):
    found, reasons = seen
    assert found[name] == RESIDUALS[name][2], reasons[name]


@pytest.mark.parametrize("name", REJECTED)
def test_detect_names_a_reason_when_a_pattern_only_looks_like_a_residual(name, seen):
    found, reasons = seen
    assert not found[name]
    expected = set(REJECTED[name][2].split())
    assert not expected or expected & reasons[name]
