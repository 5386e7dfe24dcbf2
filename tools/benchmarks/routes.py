"""The two ways of one torch module to a served file side by side.

    python -m laurel_graph.tools.benchmarks.routes                     every network of :mod:`.blocks` and three large
    python -m laurel_graph.tools.benchmarks.routes resnet --width 128  one of them

``onnx`` is the module exported by torch, the file transformed, trained and deployed; ``torch`` is the module
transformed, exported by :func:`laurel_graph.export_onnx`, trained and deployed. Trained means that the LAuReL tensors
are drawn far from their start, in both alike. Ratios are medians of paired, interleaved runs over the plain export;
nodes are those after ONNX Runtime's own optimisation.
"""

from __future__ import annotations

import json
import logging
import platform
import statistics
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from laurel_graph import onnx_file, runtime
from laurel_graph.config import LaurelConfig
from laurel_graph.passes.deploy.deploy import deploy_file
from laurel_graph.passes.pipeline import transform
from laurel_graph.passes.rewrite.export import export_onnx

from .blocks import BLOCKS, network
from .latency import latencies
from .models import draw_tensors
from .networks import NETWORKS

LARGE = ("resnet50", "mobilenetv2", "vit-s")
"""Networks of :mod:`.networks` that are measured besides :data:`~.blocks.BLOCKS`."""


@dataclass(frozen=True)
class Served:
    """The files of one module.

    Attributes:
        original: what torch exports of the module as it is.
        by_onnx: deployed by the ONNX route.
        by_torch: deployed by the torch route.
    """

    original: Path
    by_onnx: Path
    by_torch: Path


@dataclass(frozen=True)
class RouteRow:
    """One network and variant.

    Attributes:
        network: its name.
        variant: the LAuReL variant.
        original_ms: median time of the plain export.
        onnx_ratio: deployed by the ONNX route, over it.
        torch_ratio: deployed by the torch route, over it.
        torch_to_onnx: torch route over ONNX route.
        nodes: nodes after ONNX Runtime's optimisation: of the original, by the ONNX route, by the torch route.
        same: whether both routes end in the same nodes.
    """

    network: str
    variant: str
    original_ms: float
    onnx_ratio: float
    torch_ratio: float
    torch_to_onnx: float
    nodes: tuple[int, int, int]
    same: bool


def serve(module: nn.Module, example: tuple[Any, ...], variant: str, folder: Path) -> Served:
    """Takes a module both ways.

    Args:
        module: in eval mode; it stays as it is.
        example: positional example inputs.
        variant: the LAuReL variant.
        folder: where the files go.
    """
    served = Served(*(folder / f"{name}.onnx" for name in ("original", "by_onnx", "by_torch")))
    config = LaurelConfig(variant=variant)
    with _quiet():
        shapes = tuple({0: "batch"} for _ in example)
        options: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False}
        torch.onnx.export(module, example, str(served.original), dynamic_shapes=shapes, **options)
        transform(served.original, config, output=folder / "changed.onnx")
        export_onnx(transform(module, config, example).model, example, folder / "exported.onnx")
    for trained, deployed in (("changed", served.by_onnx), ("exported", served.by_torch)):
        draw_tensors(folder / f"{trained}.onnx")
        deploy_file(folder / f"{trained}.onnx", deployed)
    return served


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch's exporter from telling what it does."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def census(path: Path) -> Counter[str]:
    """Returns how many nodes of each type ONNX Runtime's own optimisation leaves of a file."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = runtime.session_options(1, operators=runtime.used_operators(path))
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.log_severity_level = 3  # it warns that the file fits this machine alone
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx_file.read(Path(options.optimized_model_filepath)).graph.node)


def measure(name: str, variant: str, *, width: int = 64, blocks: int = 4, runs: int = 30, threads: int = 1) -> RouteRow:
    """Returns the row of one network.

    Args:
        name: of :data:`~.blocks.BLOCKS` or :data:`~.networks.NETWORKS`.
        variant: the LAuReL variant.
        width: channels or features of a network of blocks.
        blocks: its blocks.
        runs: counted runs of each file.
        threads: threads of every session; of one alone the processor time is taken, else the clock.
    """
    torch.manual_seed(0)
    if name in BLOCKS:
        module, example = network(name, width, blocks, batch=1)
    else:
        module, example = NETWORKS[name].build().eval(), NETWORKS[name].example(1, 128)
    with tempfile.TemporaryDirectory() as folder:
        served = serve(module, example, variant, Path(folder))
        files = [served.original, served.by_onnx, served.by_torch]
        counts = [census(path) for path in files]
        inputs = [value.name for value in onnx_file.read(served.original).graph.input]
        feeds = {key: tensor.numpy() for key, tensor in zip(inputs, example, strict=True)}
        original, by_onnx, by_torch = latencies(files, feeds, threads=threads, runs=runs, cpu_time=threads == 1)
    return RouteRow(
        network=name,
        variant=variant,
        original_ms=statistics.median(original) * 1e3,
        onnx_ratio=_ratio(by_onnx, original),
        torch_ratio=_ratio(by_torch, original),
        torch_to_onnx=_ratio(by_torch, by_onnx),
        nodes=(counts[0].total(), counts[1].total(), counts[2].total()),
        same=counts[1] == counts[2],
    )


def _ratio(taken: list[float], other: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(taken, other, strict=True))


_LINE = "{:12} {:9} {:>10} {:>6} {:>6} {:>10} {:>12} {:>5}"


def main(
    networks: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join((*BLOCKS, *NETWORKS))}.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="A variant; may be repeated.")] = None,
    width: Annotated[int, typer.Option(help="Channels or features of the networks of blocks.")] = 64,
    blocks: Annotated[int, typer.Option(help="Their blocks.")] = 4,
    runs: Annotated[int, typer.Option(help="Counted runs of each file.")] = 30,
    threads: Annotated[int, typer.Option(help="Threads; of one the processor time is taken.")] = 1,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the torch route and the ONNX route of networks side by side."""
    rows = []
    if not json_:
        typer.echo(f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}, {runs} runs")
        typer.echo(_LINE.format("network", "variant", "original", "onnx", "torch", "torch/onnx", "nodes", "same"))
    for name in networks or (*BLOCKS, *LARGE):
        for each in variant or ("rw", "rw+lr"):
            row = measure(name, each, width=width, blocks=blocks, runs=runs, threads=threads)
            rows.append(row)
            if not json_:
                ratios = [f"{value:.3f}" for value in (row.onnx_ratio, row.torch_ratio, row.torch_to_onnx)]
                nodes = "/".join(str(count) for count in row.nodes)
                same = "yes" if row.same else "NO"
                typer.echo(_LINE.format(name, each, f"{row.original_ms:.2f} ms", *ratios, nodes, same))
    if json_:
        typer.echo(json.dumps({"machine": _processor(), "rows": [asdict(row) for row in rows]}))


def _processor() -> str:
    """Returns the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    typer.run(main)
