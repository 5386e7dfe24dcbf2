"""An image classifier on digits: LAuReL against a head alone, LoRA and full fine-tuning.

The trained ResNet-50-thin (open-nsfw) gets a new linear head and learns from some of 5000 MNIST digits; it is measured
on others, none of which chose anything: the learning rate of every method is the one with the lowest loss on validation
digits, after a short run from a seed of its own; the search goes on past the rates it begins with until neither the
next lower nor the next higher rate is better. The head learns at one rate under every method, so that none is held back
by a rate that suits its own tensors and not the head. LoRA (peft) sits on every convolution, at the rank whose number
of parameters comes next to that of RW+LR.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

import laurel_graph as lg
from laurel_graph.tools.console import print_table
from laurel_graph.tools.finetuning.data import Data
from laurel_graph.tools.finetuning.losses import build_loss, build_metric
from laurel_graph.tools.finetuning.task import Task
from laurel_graph.tools.finetuning.train_options import TrainOptions
from laurel_graph.tools.finetuning.training.loop import train

from .files import mnist, nsfw_model
from .overhead import module_of
from .results import Results, Run, add_flags, chosen, column, mean_and_spread

FEATURES, WIDTH, INPUT, TARGET = "Relu_48:0", 1024, "input:0", "digit"
COUNT, BATCH, SEARCH_SEED = 5000, 16, 100
RATES, FULL_RATES = (1e-3, 3e-3), (3e-5, 1e-4)
LADDER = tuple(float(f"{digit}e{power}") for power in range(-7, 2) for digit in (1, 3))
GAIN = 0.01
"""A rate that lowers the loss by less than this share ends the search."""
METHODS = ("head", "rw", "lr", "rw+lr", "rw+lr+pa", "lora", "full")
MEAN_BGR = np.array([104, 117, 123], np.float32)


Rows = slice | NDArray[np.int64]


class Digits:
    """Digits enlarged for the classifier: 28×28 grey to ``(28·scale, 28·scale, 3)``."""

    def __init__(self, rows: Rows, scale: int) -> None:
        images, classes = mnist()
        self.images, self.classes, self.scale = images[rows], classes[rows], scale

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, object]:
        grey = self.images[index].repeat(self.scale, 0).repeat(self.scale, 1).astype(np.float32)
        return {INPUT: grey[..., None] - MEAN_BGR, TARGET: self.classes[index]}


class Classifier(nn.Module):
    """The trunk, averaged over all places, under a linear head that starts at zero.

    Args:
        trunk: ``(N, H, W, 3)`` to ``(N, 1024, h, w)``.
        pace: how many times as fast as the trunk the head learns. Adam's steps have the size of the rate whatever the
            gradient, so a factor behind the head is a factor of its rate.
    """

    def __init__(self, trunk: nn.Module, pace: float) -> None:
        super().__init__()
        self.trunk, self.head, self.pace = trunk, nn.Linear(WIDTH, 10), pace
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        return self.pace * self.head(self.trunk(images).mean((2, 3)))  # type: ignore[no-any-return]


def trunk(method: str, rank: int, lora_rank: int, seed: int) -> nn.Module:
    """Returns the feature extractor, with what the *method* trains set to require gradients."""
    torch.manual_seed(seed)
    if method == "head":
        return module_of(nsfw_model(), FEATURES).requires_grad_(False)
    if method == "full":
        return module_of(nsfw_model(), FEATURES, ["*_fused_bn"])
    if method == "lora":
        import peft

        plain = with_modules(module_of(nsfw_model(), FEATURES))
        lora = peft.LoraConfig(r=lora_rank, lora_alpha=lora_rank, target_modules=r".*convolutions\.\d+")
        adapted: nn.Module = peft.inject_adapter_in_model(lora, plain)
        return adapted
    with tempfile.TemporaryDirectory() as folder:
        config = lg.LaurelConfig(variant=method, rank=rank, seed=seed)
        return module_of(lg.transform(nsfw_model(), config, output=Path(folder) / "model.onnx").model, FEATURES)


def with_modules(module: nn.Module) -> nn.Module:
    """Returns an imported module whose convolutions are ``nn.Conv2d`` modules, which is what peft looks for."""
    assert isinstance(module, fx.GraphModule)
    module.convolutions = nn.ModuleList()
    for node in [node for node in module.graph.nodes if node.target is F.conv2d]:
        x, weight, bias, strides, pads, dilations, groups = node.args
        kernel, offset = (tensor_at(module, str(part.target)) for part in (weight, bias))
        out, each, height, width = kernel.shape
        layer = nn.Conv2d(each * groups, out, (height, width), strides, pads, dilations, groups).requires_grad_(False)
        layer.weight.data.copy_(kernel)
        assert layer.bias is not None
        layer.bias.data.copy_(offset)
        module.convolutions.append(layer)
        with module.graph.inserting_before(node):
            call = module.graph.call_module(f"convolutions.{len(module.convolutions) - 1}", (x,))
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)
    module.recompile()
    return module


def tensor_at(module: nn.Module, path: str) -> Tensor:
    """Returns the parameter or buffer that a ``get_attr`` node names."""
    parent, _, name = path.rpartition(".")
    return getattr(module.get_submodule(parent), name)  # type: ignore[no-any-return]


def count(module: nn.Module) -> int:
    """Returns the number of elements that train."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def matching_rank(target: int) -> int:
    """Returns the LoRA rank whose number of parameters is next to *target*."""
    each = count(trunk("lora", 0, 1, 0))
    return max(1, round(target / each))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--training", type=int, default=3500)
    parser.add_argument("--search", type=int, default=500, help="digits that a rate is tried on")
    parser.add_argument("--validation", type=int, default=500, help="digits by which a rate is chosen")
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--scale", type=int, default=2, help="a digit is 28 times this high and wide")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, help="learning rates to begin with")
    parser.add_argument("--head-rate", type=float, default=1e-2, help="rate of the head above a trunk that learns too")
    parser.add_argument("--full-rates", nargs="+", type=float, default=FULL_RATES, help="those of full fine-tuning")
    add_flags(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lora = matching_rank(count(trunk("rw+lr", args.rank, 1, 0))) if "lora" in args.methods else 0
    results, pool = Results.of(args), COUNT - args.test - args.validation
    if max(args.training, args.search) > pool:
        parser.error(f"there are {COUNT} digits: fewer --training, --validation or --test, please")
    settings = chosen(args, "scale", "epochs", "rank", "test", "validation", "head_rate") | {
        "experiment": "images",
        "lora": lora,
    }
    compare(search(args, results, settings), args, results, settings)


def search(args: argparse.Namespace, results: Results, settings: dict[str, Any]) -> dict[str, float]:
    """Tries the rates, prints what they gave and returns the best one of each method."""
    end = COUNT - args.test

    def measure(method: str, lr: float, seed: int) -> Run:
        known, held_out = slice(args.search), slice(end - args.validation, end)
        return measured(method, lr, SEARCH_SEED + seed, settings["lora"], known, held_out, args)

    best, lines = dict[str, float](), []
    for method in args.methods:
        tried: dict[float, Run] = {}
        wanted, lowest = set(args.full_rates if method == "full" else args.rates), float("inf")
        while wanted - tried.keys():
            rows = [{"method": method, "lr": lr} for lr in sorted(wanted - tried.keys())]
            table = results.grid(rows, 1, settings | {"search": args.search}, measure)
            if not table:
                break
            tried |= {row["lr"]: runs[0] for row, runs in table}
            best[method] = min(tried, key=lambda lr: tried[lr]["loss"])
            loss = tried[best[method]]["loss"]
            wanted = neighbours(best[method]) if loss < (1 - GAIN) * lowest else set()
            lowest = loss
        for lr, run in sorted(tried.items()):
            lines.append((method, f"{lr:g}", f"{run['accuracy']:.4f}", f"{run['loss']:.4f}"))
    title = f"rates: {args.search} digits to learn from, {args.validation} to choose by"
    print_table(title, ("method", "rate", "validation accuracy", "validation loss"), lines)
    return best


def neighbours(rate: float) -> set[float]:
    """Returns the next rates below and above: the best one has to be better than both."""
    lower, higher = (lr for lr in LADDER if lr < rate), (lr for lr in LADDER if lr > rate)
    return {max(lower, default=rate), min(higher, default=rate)}


def compare(best: dict[str, float], args: argparse.Namespace, results: Results, settings: dict[str, Any]) -> None:
    """Trains every method at its rate and prints the table."""
    end = COUNT - args.test

    def measure(method: str, lr: float, seed: int) -> Run:
        known = np.random.default_rng(seed).permutation(end - args.validation)[: args.training]
        return measured(method, lr, seed, settings["lora"], known, slice(end, None), args)

    plan = [{"method": method, "lr": lr} for method, lr in best.items()]
    table = [
        (
            row["method"],
            f"{row['lr']:g}",
            str(len(runs)),
            f"{column(runs, 'parameters')[0]:,}",
            *mean_and_spread(column(runs, "accuracy")),
            f"{statistics.fmean(column(runs, 'seconds')):.0f}",
        )
        for row, runs in results.grid(plan, args.seeds, settings | {"training": args.training}, measure)
    ]
    side = 28 * args.scale
    title = (
        f"open-nsfw on digits of {side}×{side}: {args.training} to learn from, {args.epochs} times, {args.test} to test"
    )
    columns = ("method", "rate", "seeds", "trained parameters", "test accuracy", "± std", "processor seconds")
    print_table(title, columns, table)


def measured(
    method: str, lr: float, seed: int, lora: int, known: Rows, held_out: Rows, args: argparse.Namespace
) -> Run:
    """Returns the accuracy and loss on held-out digits, the trained parameters, the processor seconds of training."""
    loss = build_loss("cross_entropy", TARGET)
    task = Task((INPUT,), loss, build_metric("accuracy", "cross_entropy", loss, TARGET))
    pace = 1.0 if method == "head" else args.head_rate / lr
    model = Classifier(trunk(method, args.rank, lora, seed), pace)
    options = TrainOptions(epochs=args.epochs, batch_size=BATCH, lr=lr, seed=seed, quiet=True)
    began = time.process_time()
    train(model, task, Data(Digits(known, args.scale), "training digits"), None, options)
    seconds = time.process_time() - began
    accuracy, mean_loss = evaluate(model, task, Data(Digits(held_out, args.scale), "held-out digits"))
    return {"accuracy": accuracy, "loss": mean_loss, "parameters": count(model), "seconds": seconds}


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, data: Data) -> tuple[float, float]:
    """Returns the accuracy and the loss on *data*, after training and without a choice by it."""
    sums = []
    for start in range(0, len(data), BATCH):
        arrays = data.batch(range(start, min(start + BATCH, len(data))))
        batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        output = task.forward(model, batch)
        sums.append((task.metric.sums(output, batch), torch.stack(task.loss(output, batch))))
    right, lost = (torch.stack(part).sum(0) for part in zip(*sums, strict=True))
    return task.metric.value(right)[0], float(lost[0] / lost[1])


if __name__ == "__main__":
    main()
