"""A small classifier with residual layers, and data that it can learn: what the training examples start from."""

import torch
from torch import Tensor, nn

WIDTH, CLASSES = 32, 4


class Layer(nn.Module):
    """x + f(x), where f is a two-layer perceptron behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


class Classifier(nn.Module):
    """``x (N, 16)`` to logits ``(N, 4)``; stands for the trained model that you have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(16, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.layers = nn.Sequential(*(Layer() for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(self.first(x)))


def data(count: int = 512, seed: int = 0) -> torch.utils.data.TensorDataset:
    """Returns samples ``x (count, 16)`` and their classes."""
    x = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    return torch.utils.data.TensorDataset(x, x.view(count, CLASSES, -1).sum(-1).argmax(-1))


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Returns the share of 512 other samples that *model* classifies correctly."""
    x, label = data(seed=1).tensors
    return (model(x).argmax(-1) == label).float().mean().item()
