"""An image classifier on digits: LAuReL against a head alone, LoRA and full fine-tuning.

The trained ResNet-50-thin (open-nsfw) gets a new linear head and learns from some of 5000 MNIST digits; it is measured
on others. LoRA (peft) sits on every convolution, at the rank whose number of parameters comes next to that of RW+LR.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import laurel_graph as lg
from laurel_graph.tools.console import note, print_table
from laurel_graph.tools.data import Data
from laurel_graph.tools.losses import build_loss, build_metric
from laurel_graph.tools.task import Task
from laurel_graph.tools.train import train
from laurel_graph.tools.train_options import TrainOptions

from .files import mnist, nsfw_model
from .overhead import module_of
from .results import Results, add_flags, spread

FEATURES, WIDTH, INPUT, TARGET = "Relu_48:0", 1024, "input:0", "digit"
METHODS = ("head", "rw", "lr", "rw+lr", "rw+lr+pa", "lora", "full")
MEAN_BGR = np.array([104, 117, 123], np.float32)


class Digits:
    """Digits enlarged for the classifier: 28×28 grey to ``(28·scale, 28·scale, 3)``."""

    def __init__(self, rows: slice, scale: int) -> None:
        images, classes = mnist()
        self.images, self.classes, self.scale = images[rows], classes[rows], scale

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, object]:
        grey = self.images[index].repeat(self.scale, 0).repeat(self.scale, 1).astype(np.float32)
        return {INPUT: grey[..., None] - MEAN_BGR, TARGET: self.classes[index]}


class Classifier(nn.Module):
    """The trunk, averaged over all places, under a linear head that starts at zero."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Linear(WIDTH, 10)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        return self.head(self.trunk(images).mean((2, 3)))  # type: ignore[no-any-return]


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
    parser.add_argument("--training", type=int, default=400)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--scale", type=int, default=4, help="a digit is 28 times this high and wide")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--full-lr", type=float, default=2e-4, help="learning rate of full fine-tuning")
    add_flags(parser)
    args = parser.parse_args()
    test, results, rows = Data(Digits(slice(-args.test, None), args.scale), "test digits"), Results.of(args), []
    lora = matching_rank(count(trunk("rw+lr", args.rank, 1, 0))) if "lora" in args.methods else 1
    for method in args.methods:
        runs = [measured(method, seed, lora, test, results, args) for seed in range(args.seeds)]
        done = [run for run in runs if run is not None]
        if not done:
            continue
        values = [run["accuracy"] for run in done]
        seconds = statistics.fmean(run["seconds"] for run in done)
        cells = (
            f"{done[0]['parameters']:,}",
            f"{statistics.fmean(values):.4f}",
            f"{spread(values):.4f}",
            f"{seconds:.0f}",
        )
        rows.append((method, str(len(done)), *cells))
    title = f"open-nsfw on digits: {args.training} to learn from, {args.test} to test, rank {args.rank}"
    print_table(title, ("method", "seeds", "trained parameters", "test accuracy", "± std", "seconds"), rows)


def measured(
    method: str, seed: int, lora: int, test: Data, results: Results, args: argparse.Namespace
) -> dict[str, float] | None:
    """Returns the test accuracy, the parameters and the processor seconds of training of one run, or ``None``."""

    def run() -> dict[str, float]:
        loss = build_loss("cross_entropy", TARGET)
        task = Task((INPUT,), loss, build_metric("accuracy", "cross_entropy", loss, TARGET))
        start = seed * args.training % (5000 - args.test - args.training + 1)
        known = Data(Digits(slice(start, start + args.training), args.scale), "training digits")
        model = Classifier(trunk(method, args.rank, lora, seed))
        lr = args.full_lr if method == "full" else args.lr
        began = time.process_time()
        train(model, task, known, None, TrainOptions(epochs=args.epochs, batch_size=16, lr=lr, seed=seed, quiet=True))
        seconds = time.process_time() - began
        accuracy = evaluate(model, task, test)
        note(f"{method}, seed {seed}: accuracy {accuracy:.4f}")
        return {"accuracy": accuracy, "parameters": count(model), "seconds": seconds}

    names = ("training", "test", "scale", "epochs", "rank", "lr", "full_lr")
    settings = {"experiment": "images", "method": method, "seed": seed, "lora": lora if method == "lora" else 0}
    return results.run(settings | {name: getattr(args, name) for name in names}, run)


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, data: Data) -> float:
    """Returns the metric on *data*, after training and without a choice by it."""
    sums = [
        task.metric.sums(task.forward(model, batch), batch)
        for start in range(0, len(data), 16)
        for batch in [{n: torch.from_numpy(a) for n, a in data.batch(range(start, min(start + 16, len(data)))).items()}]
    ]
    return task.metric.value(torch.stack(sums).sum(0))[0]


if __name__ == "__main__":
    main()
