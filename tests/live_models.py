"""Small live modules: one for each way in which people write ``x + f(x)``; name to (module, joins)."""

import functools
import operator

import torch
from torch import nn
from torch.nn import functional

WIDTH = 12


def branch():
    return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))


def inputs():
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.g = branch(), branch()


class Plain(Base):
    def forward(self, x):
        x = x + self.f(x)
        return self.g(x) + x


class TwoOnALine(Base):
    def forward(self, x):
        return (x + self.f(x)) + self.g(x + self.f(x))


class Augmented(Base):
    def forward(self, x):
        x = x * 1.0
        x += self.f(x.clone())
        return x


class Method(Base):
    def forward(self, x):
        x = x * 1.0
        x.add_(self.f(x.clone()))
        return x.add(self.g(x))


class Alpha(Base):
    def forward(self, x):
        x = torch.add(x, self.f(x), alpha=0.5)
        return torch.add(self.g(x), x, alpha=0.5)


class Operator(Base):
    def forward(self, x):
        return operator.add(x, self.f(x))


def dropout_add(branch, skip, p, training):
    return skip + functional.dropout(branch, p, training)


def through(branch, skip):
    return dropout_add(branch, skip, 0.1, training=False)


class Helper(Base):
    def forward(self, x):
        x = dropout_add(self.f(x), x, 0.1 if self.training else 0.0, self.training)
        return through(self.g(x), x)


class OwnMethod(Base):
    def step(self, x, f):
        return x + f(x)

    def forward(self, x):
        for f in (self.f, self.g):
            x = self.step(x, f)
        return x


class Super(Plain):
    def forward(self, x):
        y = super().forward(x)
        return y + self.f(y)


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class Decorated(Base):
    @decorated
    def forward(self, x):
        return x + self.f(x)


class Closure(Base):
    def forward(self, x):
        def step(y, f):
            return y + f(y)

        return step(step(x, self.f), self.g)


class Guarded(Base):
    def forward(self, x):
        try:
            with torch.autograd.profiler.record_function("first"):
                x = x + self.f(x)
        finally:
            x = x + self.g(x)
        return x


class Comprehension(Base):
    def forward(self, x):
        return sum([y + f(y) for y, f in ((x, self.f),)])


class Partial(Base):
    def __init__(self):
        super().__init__()
        self.join = functools.partial(dropout_add, p=0.1, training=False)

    def forward(self, x):
        return self.join(self.f(x), x)


class Checkpointed(OwnMethod):
    def forward(self, x):
        x = torch.utils.checkpoint.checkpoint(self.step, x, self.f, use_reentrant=False)
        return x + self.g(x)


class Parallel(Base):
    def forward(self, x):
        return x + self.f(x) + self.g(x)


class Loop(nn.Module):
    def __init__(self, layers=3):
        super().__init__()
        self.layers = nn.ModuleList(branch() for _ in range(layers))

    def forward(self, x, times=1):
        for _ in range(times):
            for layer in self.layers:
                x = x + layer(x)
        return x


class Recurrence(Base):
    def forward(self, x, times=3):
        for _ in range(times):
            x = x + self.f(x)
        return x


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Plain()

    def forward(self, x):
        return self.block(self.block(x))


class Stack(nn.Module):
    """Blocks of their own: PA reaches across them."""

    def __init__(self, layers=4):
        super().__init__()
        self.blocks = nn.ModuleList(Plain() for _ in range(layers))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Encoder(nn.Module):
    """torch's own layers, which take a fused shortcut in eval mode."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.layers(x).mean(1)


class Chain(nn.Sequential):
    """Goes through its submodules: one more would run as one of them."""

    def __init__(self):
        super().__init__(branch(), branch())

    def forward(self, x):
        for layer in self:
            x = x + layer(x)
        return x


class Children(nn.Module):
    """Holds such a chain, and a block that goes through its children in a method of its own."""

    class Inner(Base):
        def run(self, y):
            for layer in self.children():
                y = layer(y)
            return y

        def forward(self, x):
            return x + self.run(x)

    def __init__(self):
        super().__init__()
        self.one, self.two = Chain(), Children.Inner()

    def forward(self, x):
        return self.two(self.one(x))


class SharedActivation(nn.Module):
    """One activation object at two places: torch.export runs such a model through stand-ins."""

    class Inner(Base):
        def __init__(self, act):
            super().__init__()
            self.act = act

        def forward(self, x):
            return x + self.f(self.act(x))

    def __init__(self):
        super().__init__()
        act = nn.GELU()
        self.blocks = nn.ModuleList(SharedActivation.Inner(act) for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def without_source():
    """A class whose source nobody has, as one typed into a prompt."""
    made = {}
    code = "class Typed(Base):\n    def forward(self, x):\n        return x + self.f(x)\n"
    exec(code, {"Base": Base}, made)  # what a prompt does
    return made["Typed"]()


FORMS = {
    "plain": (Plain, 2),
    "two on a line": (TwoOnALine, 2),
    "augmented": (Augmented, 1),
    "methods": (Method, 2),
    "alpha": (Alpha, 2),
    "operator": (Operator, 1),
    "helpers": (Helper, 2),
    "own method": (OwnMethod, 2),
    "super": (Super, 3),
    "decorated": (Decorated, 1),
    "closure": (Closure, 2),
    "guarded": (Guarded, 2),
    "comprehension": (Comprehension, 1),
    "partial": (Partial, 1),
    "checkpointed": (Checkpointed, 2),
    "parallel": (Parallel, 1),
    "loop": (Loop, 3),
    "recurrence": (Recurrence, 1),
    "shared": (Shared, 2),
    "encoder": (Encoder, 4),
    "without source": (without_source, 1),
    "chain": (Chain, 2),
    "children": (Children, 3),
    "shared activation": (SharedActivation, 2),
}
