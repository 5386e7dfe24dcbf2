"""Networks that :mod:`laurel_graph.tools.benchmarks.routes` measures besides the large ones: one for each way in which
residual networks are built, of any width and depth, with random weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .networks import Layer


def _norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm with statistics that do something."""
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-0.3, 0.3)
    norm.running_mean = torch.randn(channels) * 0.1
    norm.running_var = torch.rand(channels) + 0.5
    return norm


class Basic(nn.Module):
    """ResNet's block of two biasless 3×3 convolutions with batch norms (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(width, width, 3, 1, 1, bias=False), _norm(width)
        self.second, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, width, H, W)`` to the same."""
        return torch.relu(x + self.norm2(self.second(torch.relu(self.norm1(self.first(x))))))


class PreActivation(nn.Module):
    """Norm and activation before each convolution (He et al. 2016, second paper)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.first = _norm(width), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2, self.second = _norm(width), nn.Conv2d(width, width, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, width, H, W)`` to the same."""
        return x + self.second(torch.relu(self.norm2(self.first(torch.relu(self.norm1(x))))))


class Squeezed(nn.Module):
    """An inverted residual whose channels are weighed by a squeeze (Hu et al. 2018), as EfficientNet has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 4 * width
        self.up, self.norm1 = nn.Conv2d(width, wide, 1, bias=False), _norm(wide)
        self.depth, self.norm2 = nn.Conv2d(wide, wide, 3, 1, 1, groups=wide, bias=False), _norm(wide)
        self.squeeze, self.widen = nn.Conv2d(wide, width, 1), nn.Conv2d(width, wide, 1)
        self.down, self.norm3 = nn.Conv2d(wide, width, 1, bias=False), _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, width, H, W)`` to the same."""
        f = nn.functional.silu(self.norm2(self.depth(nn.functional.silu(self.norm1(self.up(x))))))
        weights = torch.sigmoid(self.widen(nn.functional.silu(self.squeeze(f.mean((2, 3), keepdim=True)))))
        return x + self.norm3(self.down(f * weights))


class UNetBlock(nn.Module):
    """Group norm, SiLU, convolution, twice: the block of diffusion networks (Ho et al. 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.first = nn.GroupNorm(4, width), nn.Conv2d(width, width, 3, 1, 1)
        self.norm2, self.second = nn.GroupNorm(4, width), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, width, H, W)`` to the same."""
        f = self.first(nn.functional.silu(self.norm1(x)))
        return x + self.second(nn.functional.silu(self.norm2(f)))


class ConvNeXt(nn.Module):
    """Depthwise 7×7, layer norm over channels, two linear layers and a scale for each channel (Liu et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depth, self.norm = nn.Conv2d(width, width, 7, 1, 3, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, width, H, W)`` to the same."""
        f = self.norm(self.depth(x).permute(0, 2, 3, 1))
        f = self.scale * self.down(nn.functional.gelu(self.up(f)))
        return x + f.permute(0, 3, 1, 2)


class Gated(nn.Module):
    """RMS norm and a gated feed-forward layer without biases, as LLaMA has them (Touvron et al. 2023)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.rand(width) + 0.5)
        self.gate, self.up, self.down = (
            nn.Linear(a, b, bias=False) for a, b in ((width, 2 * width), (width, 2 * width), (2 * width, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, T, width)`` to the same."""
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.norm
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class Mixer(nn.Module):
    """Linear layers over 16 tokens, then over channels (Tolstikhin et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 16, width)`` to the same."""
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Causal(nn.Module):
    """Two dilated convolutions over time with batch norms (Bai et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv1d(width, width, 3, padding=2, dilation=2, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm1d(width), nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, width, T)`` to the same."""
        return x + self.norm2(self.second(torch.relu(self.norm1(self.first(x)))))


class Encoder(nn.Module):
    """BERT's layer: attention, norm, feed-forward, norm (Devlin et al. 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = Layer(width, 4, pre_norm=False, causal=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, T, width)`` to the same."""
        return self.layer(x, None)


def _stem(width: int) -> nn.Module:
    return nn.Conv2d(3, width, 4, 4)


_Build = Callable[[int], nn.Module]
_Example = Callable[[int, int], Tensor]


def _image(batch: int, _: int) -> Tensor:
    return torch.randn(batch, 3, 112, 112)


def _tokens(batch: int, width: int) -> Tensor:
    return torch.randn(batch, 16, width)


def _signal(batch: int, width: int) -> Tensor:
    return torch.randn(batch, width, 256)


BLOCKS: dict[str, tuple[_Build, _Build | None, _Example]] = {
    "resnet": (Basic, _stem, _image),
    "preact": (PreActivation, _stem, _image),
    "squeezed": (Squeezed, _stem, _image),
    "unet": (UNetBlock, _stem, _image),
    "convnext": (ConvNeXt, _stem, _image),
    "encoder": (Encoder, None, _tokens),
    "gated": (Gated, None, _tokens),
    "mixer": (Mixer, None, _tokens),
    "causal": (Causal, None, _signal),
}
"""Name to the block, the layer before the first block if any, and example inputs for a batch size and width."""


def network(name: str, width: int = 64, blocks: int = 4, batch: int = 2) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Returns a network of equal blocks in eval mode and an example input.

    Args:
        name: one of :data:`BLOCKS`.
        width: its channels or features, a multiple of 4.
        blocks: how many blocks.
        batch: the batch size of the example.
    """
    build, stem, example = BLOCKS[name]
    layers = [*([stem(width)] if stem is not None else []), *(build(width) for _ in range(blocks))]
    return nn.Sequential(*layers).eval(), (example(batch, width),)
