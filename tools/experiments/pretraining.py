"""The paper's Table 5 in miniature: a 6-layer GPT trained from scratch on a real text, with and without LAuReL.

The text is lee_background.cor out of the package gensim (300 news articles, 360 kB), read by characters; every 20th
block of 2000 characters is held out. Every variant starts from the same weights and sees the same batches per seed;
what differs is the residual connections. The baseline with one more layer shows what the parameters alone would buy.

A character model first learns which character follows which (a loss of 2.45 here) and stays there for long. Short
windows, large embeddings and a high rate bring it past that within some hundred steps; they were chosen on the
baseline, with a seed that the table does not use.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import laurel_graph as lg
from laurel_graph.tools.console import print_table
from laurel_graph.torch_residual.module import parameter_groups

from .files import package_file
from .results import Results, Run, add_flags, chosen, column, mean_and_spread, spread

VARIANTS = ("baseline", "one more layer", "rw", "lr", "pa", "rw+lr", "rw+lr+pa")
LAYERS, HEADS, CONTEXT, BLOCK = 6, 4, 32, 2000
EMBEDDING_STD, HEAD_STD = 0.5, 0.02


class Block(nn.Module):
    """One pre-norm transformer layer with causal attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attend(self, x: Tensor) -> Tensor:
        """Returns the attention branch for ``x (N, T, D)``."""
        qkv = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Returns the layer's output, ``(N, T, D)``."""
        x = x + self.attend(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """A language model over characters; ``tokens (N, CONTEXT)`` to logits ``(N, CONTEXT, characters)``."""

    def __init__(self, characters: int, width: int, layers: int) -> None:
        super().__init__()
        self.token = nn.Embedding(characters, width)
        self.place = nn.Parameter(torch.zeros(CONTEXT, width))
        self.layers = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=start_std(name, parameter, layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the logits of the next character at every place."""
        return self.head(self.norm(self.layers(self.token(tokens) + self.place)))  # type: ignore[no-any-return]


def start_std(name: str, parameter: Tensor, layers: int) -> float:
    """Returns the spread that a matrix starts with: the inverse root of its inputs, less where it ends a branch."""
    if name in ("token.weight", "place"):
        return EMBEDDING_STD
    if name == "head.weight":
        return HEAD_STD
    branch_end = name.endswith(("out.weight", "down.weight"))
    return float(parameter.shape[1] ** -0.5) * ((2 * layers) ** -0.5 if branch_end else 1.0)


@dataclass(frozen=True)
class Corpus:
    """Characters as numbers, divided once and for all."""

    training: Tensor
    held_out: Tensor
    characters: int

    @classmethod
    def read(cls) -> Corpus:
        """Reads the text out of the installed package."""
        text = package_file("gensim", "test/test_data/lee_background.cor").read_text(encoding="utf-8", errors="replace")
        alphabet = {character: number for number, character in enumerate(sorted(set(text)))}
        numbers = torch.tensor([alphabet[character] for character in text])
        blocks = numbers.split(BLOCK)
        parts = [[block for i, block in enumerate(blocks) if (i % 20 == 10) == held_out] for held_out in (False, True)]
        return cls(torch.cat(parts[0]), torch.cat(parts[1]), len(alphabet))

    def batches(self, steps: int, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields *steps* batches of random windows: characters and the ones that follow."""
        draw = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            starts = torch.randint(len(self.training) - CONTEXT - 1, (size,), generator=draw)
            yield windows(self.training, starts)


def windows(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``(N, CONTEXT)`` characters at *starts* and the ones that follow."""
    index = starts[:, None] + torch.arange(CONTEXT)
    return text[index], text[index + 1]


def build(variant: str, corpus: Corpus, width: int, rank: int, seed: int) -> nn.Module:
    """Returns the model of one row, all of whose parameters train."""
    torch.manual_seed(seed)
    model = GPT(corpus.characters, width, LAYERS)
    if variant == "one more layer":
        torch.manual_seed(seed)
        return GPT(corpus.characters, width, LAYERS + 1)
    if variant == "baseline":
        return model
    config = lg.LaurelConfig(variant=variant, rank=rank, seed=seed)
    rewritten: nn.Module = lg.transform(model, config, torch.zeros(1, CONTEXT, dtype=torch.long)).model
    return rewritten.requires_grad_(True)


@torch.no_grad()
def loss_of(model: nn.Module, text: Tensor) -> float:
    """Returns the mean loss on every whole window of *text*."""
    inputs, targets = windows(text, torch.arange(0, len(text) - CONTEXT - 1, CONTEXT))
    losses = [
        F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")
        for x, y in zip(inputs.split(16), targets.split(16), strict=True)
    ]
    return float(sum(losses)) / targets.numel()


def train(model: nn.Module, corpus: Corpus, steps: int, batch: int, lr: float, seed: int) -> tuple[float, float, int]:
    """Trains *model*; returns the held-out loss, median processor seconds of a step and bytes autograd saves."""
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.1), lr=lr, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    times, held = [], dict[int, int]()
    for step, (x, y) in enumerate(corpus.batches(steps, batch, seed)):
        began = time.process_time()
        with saved_storage(held) if step == 0 else nullcontext():
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        times.append(time.process_time() - began)
    return loss_of(model, corpus.held_out), statistics.median(times), sum(held.values())


def saved_storage(held: dict[int, int]) -> AbstractContextManager[None]:
    """Notes in *held* the address and bytes of every storage that autograd keeps for the backward pass."""

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=6e-3)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    add_flags(parser)
    args = parser.parse_args()
    corpus, settings = Corpus.read(), chosen(args, "steps", "width", "rank", "batch", "lr")

    def measure(variant: str, seed: int) -> Run:
        model = build(variant, corpus, args.width, args.rank, seed)
        loss, seconds, saved = train(model, corpus, args.steps, args.batch, args.lr, seed)
        parameters = sum(p.numel() for p in model.parameters())
        return {"loss": loss, "seconds": seconds, "parameters": parameters, "saved": saved}

    settings |= {"experiment": "pretraining", "context": CONTEXT}
    table = Results.of(args).grid([{"variant": v} for v in args.variants], args.seeds, settings, measure)
    base = next((runs for row, runs in table if row["variant"] == "baseline"), {})
    rows = []
    for row, runs in table:
        gains = [run["loss"] - base[seed]["loss"] for seed, run in runs.items() if seed in base]
        rows.append(
            (
                row["variant"],
                str(len(runs)),
                f"{column(runs, 'parameters')[0]:,}",
                *mean_and_spread(column(runs, "loss")),
                f"{statistics.fmean(gains):+.4f}" if gains else "",
                f"{spread(gains) / max(len(gains), 1) ** 0.5:.4f}",
                f"{1e3 * statistics.median(column(runs, 'seconds')):.1f}",
                f"{column(runs, 'saved')[0] / 2**20:.1f}",
            )
        )
    title = f"{LAYERS}-layer GPT, width {args.width}, rank {args.rank}, {args.steps} steps of {args.batch}×{CONTEXT}"
    columns = (
        "variant",
        "seeds",
        "parameters",
        "loss",
        "± std",
        "to baseline",
        "± s.e. (paired)",
        "ms a step",
        "saved MiB",
    )
    print_table(title, columns, rows)


if __name__ == "__main__":
    main()
