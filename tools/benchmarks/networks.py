"""The five networks that :mod:`laurel_graph.tools.benchmarks.models` measures: real sizes, random weights.

ResNet-50 (He et al. 2016), MobileNetV2 (Sandler et al. 2018), BERT-base (Devlin et al. 2019), GPT-2 (Radford et al.
2019, 12 layers) and ViT-S/16 (Dosovitskiy et al. 2021), written out so that no model library is needed and every node
of the exported graph is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def _conv(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(cout)]


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions around a skip; a projection where the shape changes."""

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        cout = 4 * width
        self.branch = nn.Sequential(
            *_conv(cin, width, 1), nn.ReLU(), *_conv(width, width, 3, stride), nn.ReLU(), *_conv(width, cout, 1)
        )
        self.skip = nn.Sequential(*_conv(cin, cout, 1, stride)) if stride > 1 or cin != cout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, cin, H, W)`` to ``(N, 4·width, H/stride, W/stride)``."""
        return torch.relu(self.branch(x) + self.skip(x))


class ResNet50(nn.Module):
    """``(N, 3, H, W)`` to ``(N, 1000)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        blocks, cin = [], 64
        for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for i in range(count):
                blocks.append(Bottleneck(cin, width, stride if i == 0 else 1))
                cin = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(cin, 1000)

    def forward(self, image: Tensor) -> Tensor:
        """Class scores."""
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; a skip where the shape stays."""

    def __init__(self, cin: int, cout: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = cin * expand
        first = [*_conv(cin, hidden, 1), nn.ReLU6()] if expand > 1 else []
        self.branch = nn.Sequential(
            *first, *_conv(hidden, hidden, 3, stride, hidden), nn.ReLU6(), *_conv(hidden, cout, 1)
        )
        self.joins = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """``(N, cin, H, W)`` to ``(N, cout, H/stride, W/stride)``."""
        return x + self.branch(x) if self.joins else self.branch(x)


class MobileNetV2(nn.Module):
    """``(N, 3, H, W)`` to ``(N, 1000)``."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_conv(3, 32, 3, 2), nn.ReLU6()]
        cin = 32
        table = (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        )
        for expand, cout, count, stride in table:
            for i in range(count):
                layers.append(InvertedResidual(cin, cout, stride if i == 0 else 1, expand))
                cin = cout
        self.features = nn.Sequential(*layers, *_conv(cin, 1280, 1), nn.ReLU6())
        self.head = nn.Linear(1280, 1000)

    def forward(self, image: Tensor) -> Tensor:
        """Class scores."""
        return self.head(self.features(image).mean((2, 3)))


class Attention(nn.Module):
    """Multi-head self-attention over ``(N, T, width)``; causal if asked; takes and gives keys and values if given."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal, self.scale = heads, causal, 1 / math.sqrt(width // heads)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None, past: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Mixes the tokens; *mask* is added to the scores; *past* is earlier keys and values ``(N, heads, P, w)``."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        scores = (q * self.scale) @ k.transpose(2, 3)
        if mask is not None:
            scores = scores + mask
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """One transformer layer, the norms before (GPT-2, ViT) or after (BERT) each join."""

    def __init__(self, width: int, heads: int, pre_norm: bool, causal: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attention = Attention(width, heads, causal)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def mlp(self, x: Tensor) -> Tensor:
        """The feed-forward branch."""
        return self.down(nn.functional.gelu(self.up(x)))

    def forward(self, x: Tensor, mask: Tensor | None, past: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """``(N, T, width)`` to the same."""
        if self.pre_norm:
            x = x + self.attention(self.norm1(x), mask, past)
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.mlp(x))


def _causal(scores: int, dtype: torch.dtype) -> Tensor:
    return torch.full((scores, scores), -1e9, dtype=dtype).triu(1)


class Bert(nn.Module):
    """BERT-base: ``input_ids``, ``attention_mask`` ``(N, T)`` to hidden states ``(N, T, 768)``."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(30522, 768), nn.Embedding(512, 768)
        self.norm = nn.LayerNorm(768)
        self.layers = nn.ModuleList([Layer(768, 12, False, False) for _ in range(12)])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states of the last layer."""
        x = self.norm(self.words(input_ids) + self.places.weight[: input_ids.shape[1]])
        mask = (1 - attention_mask[:, None, None, :].to(x.dtype)) * -1e9
        for layer in self.layers:
            x = layer(x, mask)
        return x


class Gpt2(nn.Module):
    """GPT-2: ``input_ids`` ``(N, T)`` to logits ``(N, T, 50257)``, the embedding shared with the head."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50257, 768), nn.Embedding(1024, 768)
        self.layers = nn.ModuleList([Layer(768, 12, True, True) for _ in range(12)])
        self.norm = nn.LayerNorm(768)
        self.register_buffer("mask", _causal(1024, torch.float32), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Scores of the next token at every place."""
        length = input_ids.shape[1]
        x = self.words(input_ids) + self.places.weight[:length]
        mask: Any = self.mask
        for layer in self.layers:
            x = layer(x, mask[:length, :length])
        return self.norm(x) @ self.words.weight.T


class Gpt2Decode(Gpt2):
    """One step of GPT-2: one token and the keys and values of those before it."""

    def forward(self, input_ids: Tensor, past: Tensor) -> Tensor:  # type: ignore[override]
        """``input_ids (N, 1)`` and ``past (24, N, 12, P, 64)`` to logits ``(N, 1, 50257)``."""
        x = self.words(input_ids) + self.places.weight[past.shape[3]]
        for i, layer in enumerate(self.layers):
            x = layer(x, None, (past[2 * i], past[2 * i + 1]))
        return self.norm(x) @ self.words.weight.T


class VitS(nn.Module):
    """ViT-S/16: ``(N, 3, 224, 224)`` to ``(N, 1000)``."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 384, 16, 16)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 384)), nn.Parameter(torch.randn(1, 197, 384))
        self.layers = nn.ModuleList([Layer(384, 6, True, False) for _ in range(12)])
        self.norm, self.head = nn.LayerNorm(384), nn.Linear(384, 1000)

    def forward(self, image: Tensor) -> Tensor:
        """Class scores."""
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        for layer in self.layers:
            x = layer(x, None)
        return self.head(self.norm(x[:, 0]))


@dataclass(frozen=True)
class Network:
    """One network of the table.

    Attributes:
        build: makes the module.
        example: makes example inputs for a batch size and a number of tokens.
        axes: dynamic axes of each input, by axis number.
    """

    build: Callable[[], nn.Module]
    example: Callable[[int, int], tuple[Tensor, ...]]
    axes: tuple[dict[int, str], ...]


def _image(batch: int, _: int) -> tuple[Tensor, ...]:
    return (torch.randn(batch, 3, 224, 224),)


def _tokens(vocabulary: int, masked: bool) -> Callable[[int, int], tuple[Tensor, ...]]:
    def example(batch: int, tokens: int) -> tuple[Tensor, ...]:
        ids = torch.randint(0, vocabulary, (batch, tokens))
        return (ids, torch.ones_like(ids)) if masked else (ids,)

    return example


def _step(batch: int, tokens: int) -> tuple[Tensor, ...]:
    return torch.randint(0, 50257, (batch, 1)), torch.randn(24, batch, 12, tokens, 64)


_IMAGE_AXES: tuple[dict[int, str], ...] = ({0: "batch"},)
_TOKEN_AXES: dict[int, str] = {0: "batch", 1: "tokens"}

NETWORKS: dict[str, Network] = {
    "resnet50": Network(ResNet50, _image, _IMAGE_AXES),
    "mobilenetv2": Network(MobileNetV2, _image, _IMAGE_AXES),
    "bert-base": Network(Bert, _tokens(30522, True), (_TOKEN_AXES, _TOKEN_AXES)),
    "gpt2": Network(Gpt2, _tokens(50257, False), (_TOKEN_AXES,)),
    "gpt2-decode": Network(Gpt2Decode, _step, ({0: "batch"}, {1: "batch", 3: "past"})),
    "vit-s": Network(VitS, _image, _IMAGE_AXES),
}
"""Name to network; ``gpt2-decode`` is one step of one token."""


def _settle(module: nn.Module, example: Sequence[Tensor]) -> None:
    """Gives every batch norm the statistics of random inputs, so that activations keep a sane size at any depth."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    if norms:
        with torch.no_grad():
            module.train()(*example)
    module.eval()


def export_network(name: str, path: Path, seed: int = 0) -> None:
    """Builds network *name* with random weights and exports it to *path* (opset 20, dynamic batch).

    Args:
        name: one of :data:`NETWORKS`.
        path: the ``.onnx`` file to write, weights inside.
        seed: seed of the weights.
    """
    torch.manual_seed(seed)
    network = NETWORKS[name]
    module = network.build()
    _settle(module, network.example(4, 16))
    example = network.example(2, 16)
    shapes: list[dict[int, Any]] = []
    dims: dict[str, Any] = {}
    for axes in network.axes:
        shapes.append({axis: dims.setdefault(dim, torch.export.Dim(dim, min=1)) for axis, dim in axes.items()})
    torch.onnx.export(
        module,
        example,
        str(path),
        dynamo=True,
        opset_version=20,
        external_data=False,
        dynamic_shapes=tuple(shapes),
        verbose=False,
    )
