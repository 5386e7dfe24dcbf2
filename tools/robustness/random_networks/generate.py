"""Draws a network and the way it is transformed from one seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from laurel_graph.config import VARIANTS, LaurelConfig

from .blocks import convolved, linear, quantised, stream
from .network import ELEMENTS, Network, Value
from .small import activated
from .tails import head

Array = NDArray[Any]

KINDS = ("float32",) * 15 + ("float16",) * 3 + ("bfloat16",) + ("quantised",) * 2 + ("float64",)


@dataclass(frozen=True)
class Case:
    """One random network.

    Attributes:
        seed: what it was drawn from.
        kind: element type of its stream, or ``quantised``.
        model: the network.
        config: how it is transformed.
        feeds: two samples.
        given: weights that a run may be given and that differ from the stored ones; empty where none are inputs.
        rng: for the trained tensors.
    """

    seed: int
    kind: str
    model: onnx.ModelProto
    config: LaurelConfig
    feeds: tuple[dict[str, Array], ...]
    given: dict[str, Array]
    rng: np.random.Generator


def draw(seed: int, kind: str | None = None) -> Case:
    """Draws the network of *seed*.

    Args:
        seed: any number.
        kind: one of :data:`KINDS`; drawn by default.
    """
    rng = np.random.default_rng(seed)
    drawn = str(KINDS[int(rng.integers(len(KINDS)))])
    kind = kind or drawn
    opset = int(rng.integers(13 if kind in ("quantised", "bfloat16") else 9, 24))
    low = 3 if opset < 15 and rng.random() < 0.25 else 4
    ir_version = low if opset < 11 else int(rng.integers(6 if opset < 15 else 8, 11))
    net = Network(rng, opset, kind if kind in ELEMENTS else "float32", ir_version=ir_version)
    if kind == "bfloat16":
        net.dtype, net.narrow = "float32", TensorProto.BFLOAT16
    net.listed = net.chance(0.15)
    tokens = net.chance(0.5) or kind == "float64"
    width = int(net.choose((8, 8, 16, 32)))
    rank = int(rng.integers(2, 6)) if tokens else int(rng.integers(3, 6))
    inner = [int(rng.integers(2, 5)) for _ in range(rank - 2)] if tokens else [6, 6, 4][: rank - 2]
    x = net.input((net.batch, *inner, width) if tokens else (net.batch, width, *inner))
    start = x
    if net.chance(0.7):
        x = _stem(net, x, tokens, width)
    if kind == "quantised":
        x = quantised(net, x)
    x = stream(net, x, tokens, int(rng.integers(1, 5)), kind == "quantised")
    head(net, x, tokens)
    config = LaurelConfig(
        variant=str(net.choose(VARIANTS)),
        rank=int(rng.integers(1, 5)),
        weights=str(net.choose(("softmax", "sigmoid", "free", "free"))),
        per_channel=net.chance(0.4),
        previous=int(rng.integers(1, 4)),
        previous_map=str(net.choose(("identity", "low-rank"))),
        seed=seed,
    )
    element = ELEMENTS[net.dtype][1]
    feeds = tuple({start.name: rng.normal(0, 1, (2 + i, *start.shape[1:])).astype(element)} for i in range(2))
    model = net.model()
    return Case(seed, kind, model, config, feeds, _given(net, rng), rng)


def _given(net: Network, rng: np.random.Generator) -> dict[str, Array]:
    if not net.listed or net.ir_version < 4:
        return {}
    floats = [name for name, value in net.weights.items() if value.dtype.kind == "f" and value.ndim > 1]
    chosen = [name for name in floats if rng.random() < 0.4]
    return {name: (net.weights[name] * rng.uniform(0.5, 1.5)).astype(net.weights[name].dtype) for name in chosen}


def _stem(net: Network, x: Value, tokens: bool, width: int) -> Value:
    y = linear(net, x, width) if tokens else convolved(net, x, width, 3)
    return activated(net, y) if net.chance(0.3) else y
