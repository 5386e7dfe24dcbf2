"""What a training step costs after the rewriting, on two real trained models.

Three steps are timed in turn: the frozen original with a trainable head; the same with gradients that flow down to the
first residual connection, as they do whenever anything there trains; and the rewritten model with the same head. A
frozen trunk under a head needs no backward pass at all, so the first ratio holds the price of training anything inside
the trunk; the second one is the price of LAuReL itself. One thread is timed by the processor, several by the clock.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import laurel_graph as lg
from laurel_graph.passes.rewrite.head import with_output
from laurel_graph.tools.console import note, print_table

from .files import minilm_model, nsfw_model

CLASSES = 10
VARIANTS = {"rw": lg.LaurelConfig(variant="rw"), "rw+lr r=16": lg.LaurelConfig(variant="rw+lr", rank=16)}


def module_of(path: Path, value: str, trainable: list[str] | None = None) -> nn.Module:
    """Returns the model as a module that computes *value* alone."""
    proto = onnx.load(path)
    with_output(proto, value)
    while len(proto.graph.output) > 1:
        proto.graph.output.remove(next(output for output in proto.graph.output if output.name != value))
    module: nn.Module = lg.import_onnx(proto, trainable=trainable)
    return module


def first_weight(path: Path, value: str) -> str:
    """Returns an initializer at the bottom of the trunk: training it makes gradients flow all the way down."""
    names = {
        tensor.name for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 1 and tensor.dims[0] > 1
    }
    for node in onnx.load(path).graph.node:
        for name in node.input:
            if name in names and node.op_type in ("Conv", "BatchNormalization", "LayerNormalization", "Add", "Mul"):
                return str(name)
    raise SystemExit(f"no weight found in front of {value}")


def stepper(module: nn.Module, inputs: tuple[Tensor, ...], width: int) -> Callable[[], None]:
    """Returns a function that makes one training step of the module's trainable parameters and a new head."""
    head = nn.Linear(width, CLASSES)
    labels = torch.arange(len(inputs[0])) % CLASSES
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([*trained, *head.parameters()], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(head(module(*inputs)), labels).backward()
        optimizer.step()

    return step


def measure(steps: dict[str, Callable[[], None]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Returns the seconds of every step by a clock, taken in turn after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for count in range(rounds + 1):
        for name, step in steps.items():
            began = clock()
            step()
            if count:
                times[name].append(clock() - began)
    return times


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--models", nargs="+", choices=("minilm", "nsfw"), default=("minilm", "nsfw"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock, unit = (time.process_time, "processor time") if args.threads == 1 else (time.perf_counter, "wall time")
    torch.manual_seed(0)
    tokens = torch.randint(1000, 20000, (args.batch, args.length))
    cases = {
        "minilm": (minilm_model, "461", (tokens, torch.ones_like(tokens)), 384),
        "nsfw": (nsfw_model, "Reshape:0", (50 * torch.randn(args.batch, 224, 224, 3),), 1024),
    }
    rows = []
    for name in args.models:
        find, value, inputs, width = cases[name]
        path = find()
        flowing = module_of(path, value, [first_weight(path, value)])
        modules = {"frozen": module_of(path, value), "gradients flow": flowing}
        with tempfile.TemporaryDirectory() as folder:
            for variant, config in VARIANTS.items():
                file = lg.transform(path, config, output=Path(folder) / "model.onnx").model
                modules[variant] = module_of(file, value)
        note(f"{name}: {args.rounds} rounds of {len(modules)} steps")
        times = measure({key: stepper(module, inputs, width) for key, module in modules.items()}, args.rounds, clock)
        for key, taken in times.items():
            against = [
                statistics.median(a / b for a, b in zip(taken, times[base], strict=True)) - 1
                for base in ("frozen", "gradients flow")
            ]
            rows.append(
                (name, key, f"{1e3 * statistics.median(taken):.1f}", *(f"{100 * ratio:+.1f} %" for ratio in against))
            )
    print_table(
        f"one training step, batch {args.batch}, threads: {args.threads}, median of {args.rounds} paired rounds",
        ("model", "variant", f"ms of {unit}", "to frozen", "to gradients that flow"),
        rows,
    )


if __name__ == "__main__":
    main()
