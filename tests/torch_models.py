"""Small torch models that several tests share: name to (module, example inputs)."""

import warnings

import torch
from torch import nn


class PreNorm(nn.Module):
    """x + f(norm(x)), four times: one stream of one shape, ``(n, 5, 12)``."""

    def __init__(self, layers=4):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(layers))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12), nn.Dropout(0.1)) for _ in range(layers)
        )

    def forward(self, x):
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            x = x + mlp(norm(x))
        return x


class BasicBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class ResNet(nn.Module):
    """In-place adds and activations on axis 1, with a head."""

    def __init__(self, channels=8, blocks=3):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.layer = nn.Sequential(*(BasicBlock(channels) for _ in range(blocks)))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, 4)

    def forward(self, x):
        x = self.layer(self.stem(x).relu())
        return self.fc(self.pool(x).flatten(1))


class Parallel(nn.Module):
    """(x + a) + b: joins of two branches."""

    def __init__(self, layers=3):
        super().__init__()
        self.a = nn.ModuleList(nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 12), nn.Tanh()) for _ in range(layers))
        self.b = nn.ModuleList(nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 12), nn.GELU()) for _ in range(layers))

    def forward(self, x):
        for a, b in zip(self.a, self.b, strict=True):
            x = x + a(x) + b(x)
        return x


class Weighted(nn.Module):
    """Joins with a factor: torch.add(x, f, alpha=...) and torch.add(f, x, alpha=...)."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x):
        x = torch.add(x, self.first(x).relu(), alpha=0.3)
        return torch.add(self.second(x).relu(), x, alpha=0.7)


def small_models():
    """Name to a function that returns (module in eval mode, example inputs of batch 1, the same of batch 7)."""

    def tokens(batch):
        return (torch.randn(batch, 5, 12),)

    def images(batch):
        return (torch.randn(batch, 3, 6, 5),)

    def words(batch):
        return (torch.randint(0, 90, (batch, 6)),)

    def bert():
        from transformers import BertConfig, BertModel

        config = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2}
        return BertModel(BertConfig(vocab_size=99, max_position_embeddings=16, **config))

    def llama():
        from transformers import LlamaConfig, LlamaModel

        config = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2}
        return LlamaModel(LlamaConfig(vocab_size=99, num_key_value_heads=1, use_cache=False, **config))

    def neox():
        from transformers import GPTNeoXConfig, GPTNeoXModel

        config = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2}
        return GPTNeoXModel(GPTNeoXConfig(vocab_size=99, use_cache=False, **config))

    def efficientnet():
        from efficientnet_lite_pytorch import EfficientNet

        return EfficientNet.from_name("efficientnet-lite0")

    def large_images(batch):
        return (torch.randn(batch, 3, 32, 32),)

    return {
        "prenorm": (PreNorm, tokens),
        "resnet": (ResNet, images),
        "parallel": (Parallel, tokens),
        "weighted": (Weighted, tokens),
        "bert": (bert, words),
        "llama": (llama, words),
        "neox": (neox, words),
        "efficientnet": (efficientnet, large_images),
    }


def make(name, batch=2, seed=0):
    """Returns (module in eval mode, inputs) of a small model."""
    torch.manual_seed(seed)
    build, inputs = small_models()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build()
    return model.eval(), inputs(batch)


def rewritten(name, variant="rw+lr", batch=2, export=False, **options):
    """Returns (rewritten GraphModule, inputs, plans) of a small model; *export* is False, True or "dynamic"."""
    from laurel_graph.config import LaurelConfig
    from laurel_graph.passes.detect.rule import detect
    from laurel_graph.passes.read_fx.capture import capture
    from laurel_graph.passes.rewrite.fx import insert
    from laurel_graph.passes.select import select

    model, inputs = make(name, batch)
    if export:
        dims = tuple({0: torch.export.Dim.AUTO} for _ in inputs) if export == "dynamic" else None
        model = torch.export.export(model, inputs, dynamic_shapes=dims)
    captured = capture(model, inputs)
    plans = select(detect(captured.view), LaurelConfig(variant=variant, **options)).plans
    insert(captured.module, plans)
    return captured.module, inputs, plans


def randomise(module, seed=0, scale=0.3):
    """Draws every LAuReL parameter of *module* at random, and returns it."""
    from laurel_graph.torch_residual.module import laurel_modules

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for laurel in laurel_modules(module).values():
            for p in laurel.parameters():
                p.copy_(scale * torch.randn(p.shape, generator=generator))
    return module


def leaves(output):
    """Returns the tensors of a model's output."""
    flat = torch.utils._pytree.tree_leaves(dict(output) if hasattr(output, "keys") else output)
    return [leaf for leaf in flat if isinstance(leaf, torch.Tensor)]
