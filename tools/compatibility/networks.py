"""The five small models whose files are handed to other runtimes and tools, with weights drawn at random.

``cnn``      bottlenecks with batch norm, one projection and two identities; images of fixed size
``encoder``  a BERT of two layers; open batch and length, a mask
``decoder``  one step of a GPT-2 of two layers: one token, keys and values of those before it
``qdq``      the first, statically quantised by ONNX Runtime with QuantizeLinear and DequantizeLinear around operators
``fp16``     the second, its weights and arithmetic in 16 bits, by ONNX Runtime's converter
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from laurel_graph.tools.benchmarks.networks import Bottleneck, Layer

from .changers import quantise_statically, quiet

WIDTH, HEADS, LAYERS, VOCABULARY, LONGEST = 32, 2, 2, 50, 24
TOKENS, PAST = 6, 5
OPSET = 20
"""Known to all runtimes that are tried, and old enough for tools that raise it."""


class _Cnn(nn.Module):
    """``(1, 3, 16, 16)`` to ``(1, 10)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, 1, 1)
        self.blocks = nn.Sequential(Bottleneck(WIDTH, 16, 2), Bottleneck(64, 16, 1), Bottleneck(64, 16, 1))
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Any:
        return self.head(self.blocks(torch.relu(self.stem(image))).mean((2, 3)))


class _Encoder(nn.Module):
    """``(N, T)`` tokens and mask to hidden states ``(N, T, WIDTH)``."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.layers = nn.ModuleList([Layer(WIDTH, HEADS, False, False) for _ in range(LAYERS)])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        x = self.words(input_ids) + self.places.weight[: input_ids.shape[1]]
        mask = (1 - attention_mask[:, None, None, :].to(x.dtype)) * -1e4
        for layer in self.layers:
            x = layer(x, mask)
        return x


class _Decoder(nn.Module):
    """``(1, 1)`` tokens and ``(2·LAYERS, 1, HEADS, PAST, w)`` to scores ``(1, 1, VOCABULARY)``."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.layers = nn.ModuleList([Layer(WIDTH, HEADS, True, True) for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, input_ids: Tensor, past: Tensor) -> Any:
        x = self.words(input_ids) + self.places.weight[past.shape[3]]
        for i, layer in enumerate(self.layers):
            x = layer(x, None, (past[2 * i], past[2 * i + 1]))
        return self.norm(x) @ self.words.weight.T


@dataclass(frozen=True)
class Network:
    """One of the models.

    Attributes:
        feeds: what it is run on, by input.
        tolerance: how far a right answer may be off, over the largest number of the output.
        why: what the tolerance covers, where it is more than that of float32.
    """

    feeds: dict[str, NDArray[Any]]
    tolerance: float
    why: str = ""


FLOAT32 = 1e-4
"""What runtimes may differ by in float32."""


def _feeds() -> dict[str, dict[str, NDArray[Any]]]:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((1, 3, 16, 16)).astype(np.float32)
    ids = rng.integers(0, VOCABULARY, (2, TOKENS))
    mask = np.ones((2, TOKENS), np.int64)
    mask[1, -2:] = 0
    past = rng.standard_normal((2 * LAYERS, 1, HEADS, PAST, WIDTH // HEADS)).astype(np.float32)
    tokens = {"input_ids": ids, "attention_mask": mask}
    return {"cnn": {"image": image}, "encoder": tokens, "decoder": {"input_ids": ids[:1, :1], "past": past}}


_F = _feeds()
NETWORKS = {
    "cnn": Network(_F["cnn"], FLOAT32),
    "encoder": Network(_F["encoder"], FLOAT32),
    "decoder": Network(_F["decoder"], FLOAT32),
    "qdq": Network(_F["cnn"], 2e-2, "two steps of the quantised output: rounding may fall to either side"),
    "fp16": Network(_F["encoder"], 5e-3, "16 bits, as laurel verify allows them"),
}
"""Name to model."""


def write_networks(folder: Path, names: tuple[str, ...]) -> dict[str, Path]:
    """Writes those of the models that are named, as ``<name>.onnx``; returns name to file."""
    paths = {name: folder / f"{name}.onnx" for name in NETWORKS}
    made: dict[str, onnx.ModelProto] = {}
    wanted = {{"qdq": "cnn", "fp16": "encoder"}.get(name, name) for name in names}
    for name, module in (("cnn", _Cnn), ("encoder", _Encoder), ("decoder", _Decoder)):
        if name in wanted:
            torch.manual_seed(0)
            made[name] = _exported(module().eval(), _F[name], name == "encoder")
    if "qdq" in names:
        with quiet():
            made["qdq"] = _quantised(made["cnn"], folder)
    if "fp16" in names:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        with quiet():
            made["fp16"] = convert_float_to_float16(made["encoder"], keep_io_types=True)
    for name in names:
        onnx.save(made[name], paths[name])
    return {name: paths[name] for name in names}


def _exported(module: nn.Module, feeds: dict[str, NDArray[Any]], is_open: bool) -> onnx.ModelProto:
    if isinstance(module, _Cnn):  # statistics of real activations, or the signal fades from block to block
        for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = None
        with torch.no_grad():
            module.train()(torch.randn(16, *feeds["image"].shape[1:]))
        module.eval()
    example = tuple(torch.from_numpy(array) for array in feeds.values())
    axes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("tokens", min=1, max=LONGEST)}
    with quiet():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=list(feeds),
            output_names=["y"],
            dynamic_shapes=tuple(axes for _ in example) if is_open else None,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


def _quantised(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    samples = [{"image": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(8)]
    onnx.save(model, folder / "float.onnx")
    quantise_statically(folder / "float.onnx", folder / "int8.onnx", samples)
    return onnx.load(folder / "int8.onnx")
