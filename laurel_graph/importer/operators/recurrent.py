"""LSTM, GRU and RNN, one step after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..builder import Value
from ..node import Node
from ..registry import Registry
from .activation import hard_sigmoid


class Options(NamedTuple):
    """Attributes that LSTM, GRU and RNN share."""

    hidden: int
    direction: str
    activations: tuple[tuple[str, float | None, float | None], ...]
    clip: float | None
    batch_first: bool
    linear_before_reset: bool
    coupled: bool


def _activation(name: str, alpha: float | None, beta: float | None) -> Callable[[Tensor], Tensor]:
    def value(given: float | None, default: float) -> float:
        return default if given is None else given

    known: dict[str, Callable[[Tensor], Tensor]] = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": torch.relu,
        "softsign": F.softsign,
        "softplus": F.softplus,
        "affine": lambda x: value(alpha, 1.0) * x + value(beta, 0.0),
        "leakyrelu": lambda x: F.leaky_relu(x, value(alpha, 0.01)),
        "thresholdedrelu": lambda x: torch.where(x > value(alpha, 1.0), x, torch.zeros_like(x)),
        "scaledtanh": lambda x: value(alpha, 1.0) * torch.tanh(value(beta, 1.0) * x),
        "hardsigmoid": lambda x: hard_sigmoid(x, value(alpha, 0.2), value(beta, 0.5)),
        "elu": lambda x: F.elu(x, value(alpha, 1.0)),
    }
    return known[name]


ACTIVATIONS = (
    "sigmoid", "tanh", "relu", "softsign", "softplus", "affine", "leakyrelu", "thresholdedrelu", "scaledtanh",
    "hardsigmoid", "elu",
)  # fmt: skip

_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(
    kind: str, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, lengths: Tensor | None, h0: Tensor | None,
    c0: Tensor | None, p: Tensor | None, options: Options,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Runs a recurrent layer in both directions.

    ``x`` (T, N, I) or (N, T, I); ``w`` (D, G·H, I); ``r`` (D, G·H, H); ``b`` (D, 2·G·H); states (D, N, H) or (N, D, H);
    ``p`` (D, 3·H). Returns all hidden states (T, D, N, H) or (N, T, D, H), the last ones and the last cells.
    """
    if options.batch_first:
        x = x.transpose(0, 1)
        h0, c0 = (None if s is None else s.transpose(0, 1) for s in (h0, c0))
    directions = w.shape[0]
    per = len(options.activations) // directions
    outputs, last_h, last_c = [], [], []
    for d in range(directions):
        backward = options.direction == "reverse" or d == 1
        functions = [_activation(*a) for a in options.activations[d * per : (d + 1) * per]]
        zeros = x.new_zeros(x.shape[1], options.hidden)
        h = zeros if h0 is None else h0[d]
        c = zeros if c0 is None else c0[d]
        step = {"LSTM": _lstm_step, "GRU": _gru_step, "RNN": _rnn_step}[kind]
        bias = None if b is None else b[d]
        peepholes = None if p is None else p[d]
        states = []
        projected = F.linear(x, w[d])
        order = range(x.shape[0] - 1, -1, -1) if backward else range(x.shape[0])
        for t in order:
            new_h, new_c = step(projected[t], h, c, r[d], bias, peepholes, functions, options)
            if lengths is not None:
                alive = (lengths > t).unsqueeze(1)
                states.append(torch.where(alive, new_h, zeros))
                new_h, new_c = torch.where(alive, new_h, h), torch.where(alive, new_c, c)
            else:
                states.append(new_h)
            h, c = new_h, new_c
        outputs.append(torch.stack(states[::-1] if backward else states))
        last_h.append(h)
        last_c.append(c)
    y, y_h, y_c = torch.stack(outputs, 1), torch.stack(last_h), torch.stack(last_c)
    if options.batch_first:
        return y.permute(2, 0, 1, 3), y_h.transpose(0, 1), y_c.transpose(0, 1)
    return y, y_h, y_c


def _clipped(x: Tensor, options: Options) -> Tensor:
    return x if options.clip is None else x.clamp(-options.clip, options.clip)


def _biases(b: Tensor | None, count: int) -> tuple[Any, Any]:
    return (None, None) if b is None else (b[:count], b[count:])


def _lstm_step(wx: Tensor, h: Tensor, c: Tensor, r: Tensor, b: Tensor | None, p: Tensor | None,
               functions: Sequence[Callable[[Tensor], Tensor]], options: Options) -> tuple[Tensor, Tensor]:  # fmt: skip
    f, g, o_fn = functions
    wb, rb = _biases(b, wx.shape[-1])
    gates = wx + F.linear(h, r, rb)
    gates = gates if wb is None else gates + wb
    i, o, forget, cell = gates.chunk(4, -1)
    pi, po, pf = (None, None, None) if p is None else p.chunk(3)
    i = f(_clipped(i if pi is None else i + pi * c, options))
    forget = 1 - i if options.coupled else f(_clipped(forget if pf is None else forget + pf * c, options))
    cell = g(_clipped(cell, options))
    c = forget * c + i * cell
    o = f(_clipped(o if po is None else o + po * c, options))
    return o * o_fn(c), c


def _gru_step(wx: Tensor, h: Tensor, c: Tensor, r: Tensor, b: Tensor | None, p: Tensor | None,
              functions: Sequence[Callable[[Tensor], Tensor]], options: Options) -> tuple[Tensor, Tensor]:  # fmt: skip
    f, g = functions
    size = options.hidden
    wb, rb = _biases(b, wx.shape[-1])
    wx = wx if wb is None else wx + wb
    gates = wx[:, : 2 * size] + F.linear(h, r[: 2 * size], None if rb is None else rb[: 2 * size])
    z, reset = f(_clipped(gates, options)).chunk(2, -1)
    recurrent_bias = None if rb is None else rb[2 * size :]
    if options.linear_before_reset:
        inner = reset * F.linear(h, r[2 * size :], recurrent_bias)
    else:
        inner = F.linear(reset * h, r[2 * size :], recurrent_bias)
    new = g(_clipped(wx[:, 2 * size :] + inner, options))
    return (1 - z) * new + z * h, c


def _rnn_step(wx: Tensor, h: Tensor, c: Tensor, r: Tensor, b: Tensor | None, p: Tensor | None,
              functions: Sequence[Callable[[Tensor], Tensor]], options: Options) -> tuple[Tensor, Tensor]:  # fmt: skip
    wb, rb = _biases(b, wx.shape[-1])
    total = wx + F.linear(h, r, rb)
    return functions[0](_clipped(total if wb is None else total + wb, options)), c


def _options(node: Node) -> Options:
    direction = node.attr("direction", "forward")
    count = 2 if direction == "bidirectional" else 1
    names = [name.lower() for name in node.attr("activations") or _DEFAULTS[node.op] * count]
    for name in names:
        node.require(name in ACTIVATIONS, f"activation {name!r}")
    alphas, betas = list(node.attr("activation_alpha") or []), list(node.attr("activation_beta") or [])
    chosen = []
    for name in names:
        takes_alpha = name in ("affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu")
        takes_beta = name in ("affine", "scaledtanh", "hardsigmoid")
        alpha = alphas.pop(0) if takes_alpha and alphas else None
        chosen.append((name, alpha, betas.pop(0) if takes_beta and betas else None))
    return Options(
        node.attr("hidden_size") or 0, direction, tuple(chosen), node.attr("clip"), bool(node.attr("layout", 0)),
        bool(node.attr("linear_before_reset", 0)), bool(node.attr("input_forget", 0)),
    )  # fmt: skip


def _recurrent(node: Node) -> list[Value]:
    options = _options(node)
    if not options.hidden:
        shape = node[2].shape
        node.require(shape is not None and isinstance(shape[2], int), "a hidden size that is not known before running")
        options = options._replace(hidden=shape[2])  # type: ignore[index,arg-type]
    lstm = node.op == "LSTM"
    extra = [node.get(6), node.get(7)] if lstm else [None, None]
    inputs = [node[0], node[1], node[2], node.get(3), node.get(4), node.get(5), *extra]
    parts = node.unpack(node.emit(recurrent, node.op, *inputs, options), 3)
    return parts if lstm else parts[:2]


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    registry.add("LSTM GRU RNN", _recurrent, 7)
