"""Original, LAuReL and deployed LAuReL side by side on whole networks.

    python -m laurel_graph.tools.benchmarks.models                       the five networks of :mod:`.networks`
    python -m laurel_graph.tools.benchmarks.models model.onnx --batch 1  any other file

For each variant the network is transformed, its LAuReL tensors are drawn far from their start (α, β in [0.5, 1.5], B of
the size of A), and it is deployed. ``plain`` runs from the function bodies, ``deployed`` on the fused kernels,
``portable`` is the deployed file of plain operators. Ratios are medians of paired, interleaved runs.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from laurel_graph import onnx_file
from laurel_graph.config import LaurelConfig
from laurel_graph.onnx_model.tensors import set_tensor
from laurel_graph.opset.schema import read_specs, tensor_name
from laurel_graph.outputs import write
from laurel_graph.passes.deploy.deploy import deploy_file
from laurel_graph.passes.pipeline import transform
from laurel_graph.samples import sample_inputs

from .latency import executed_nodes, fresh_processes, latencies

VARIANTS = ("rw", "rw+lr", "rw+lr+pa")
NETWORK_NAMES = ("resnet50", "mobilenetv2", "bert-base", "gpt2", "gpt2-decode", "vit-s")


@dataclass(frozen=True)
class ModelRow:
    """One network, variant and batch size.

    Attributes:
        model: the network or file.
        variant: the LAuReL variant.
        batch: the batch size.
        original_ms: median time of the original.
        plain_ratio: LAuReL run from function bodies, over the original.
        deployed_ratio: deployed, over the original.
        portable_ratio: deployed as plain operators, over the original.
        max_rel_diff: deployed against trained, largest difference over the output's scale.
        nodes_original: nodes that run after ONNX Runtime's optimisation.
        nodes_deployed: the same for the deployed file.
        load_ratio: time to create the session, deployed over original; ``None`` if not measured.
        memory_ratio: peak memory of a process, deployed over original; ``None`` if not measured.
    """

    model: str
    variant: str
    batch: int
    original_ms: float
    plain_ratio: float
    deployed_ratio: float
    portable_ratio: float
    max_rel_diff: float
    nodes_original: int
    nodes_deployed: int
    load_ratio: float | None = None
    memory_ratio: float | None = None


def cache_folder() -> Path:
    """Returns the folder in which exported networks are kept."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "laurel-graph" / "networks"


def network_file(name: str, folder: Path) -> Path:
    """Returns the file of a network by name, exporting it the first time; any other name must be a file."""
    if name not in NETWORK_NAMES:
        return Path(name)
    path = folder / f"{name}.onnx"
    if not path.exists():
        from .networks import export_network

        folder.mkdir(parents=True, exist_ok=True)
        write(path, lambda aside: export_network(name, aside))
    return path


def draw_tensors(path: Path, seed: int = 0) -> None:
    """Gives the LAuReL tensors of a transformed file values far from their start, in place."""
    model = onnx_file.read(path)
    rng = np.random.default_rng(seed)
    for site, spec in read_specs(model).items():
        shapes = spec.tensor_shapes()
        for name, shape in shapes.items():
            value = onnx_file.tensor_array(model, tensor_name(site, name), path.parent)
            if name in ("alpha", "beta"):
                value = rng.uniform(0.5, 1.5, shape)
            elif name == "gamma":
                value = rng.uniform(-0.3, 0.3, shape)
            elif name in ("B", "previous_B"):
                first = onnx_file.tensor_array(model, tensor_name(site, name.replace("B", "A")), path.parent)
                value = rng.normal(0, np.sqrt(np.mean(np.square(first, dtype=np.float64))), shape)
            set_tensor(model, tensor_name(site, name), np.asarray(value, spec.dtype))
    path.write_bytes(model.SerializeToString())


def measure(
    name: str,
    variants: tuple[str, ...] = VARIANTS,
    batches: tuple[int, ...] = (1, 8),
    *,
    tokens: int = 128,
    threads: int = 2,
    runs: int = 20,
    fresh: int = 3,
    cpu_time: bool = False,
    cache: Path | None = None,
    report: Any = None,
) -> list[ModelRow]:
    """Returns the rows of one network or file.

    Args:
        name: one of :data:`NETWORK_NAMES` or an ONNX file.
        variants: the LAuReL variants.
        batches: the batch sizes.
        tokens: how long a text is, or what a cache holds.
        threads: threads of every session.
        runs: counted runs of each file.
        fresh: fresh processes for load time and memory; 0 leaves both out.
        cpu_time: take processor time instead of the clock, for one thread on a busy machine.
        cache: where exported networks are kept.
        report: called with each row when it is there.
    """
    original = network_file(name, cache or cache_folder())
    rows = []
    for variant in variants:
        with tempfile.TemporaryDirectory() as folder:
            plain, deployed, portable = (Path(folder) / f"{kind}.onnx" for kind in ("plain", "deployed", "portable"))
            transform(original, LaurelConfig(variant=variant), output=plain)
            draw_tensors(plain)
            done = deploy_file(plain, deployed)
            deploy_file(plain, portable, portable=True)
            difference = max(relative for _, relative in done.differences.values())
            files = [original, plain, deployed, portable]
            for batch in batches:
                feeds = sample_inputs(onnx_file.read(original), batch=batch, length=tokens)
                kernels = [True, False, True, True]
                times = latencies(files, feeds, threads=threads, runs=runs, cpu_time=cpu_time, kernels=kernels)
                ratios = [statistics.median(a / b for a, b in zip(t, times[0], strict=True)) for t in times[1:]]
                counts = [executed_nodes(path, feeds).total() for path in (original, deployed)]
                probes = fresh_processes((original, deployed), feeds, threads, fresh)
                loads = [b / a for a, b in zip(*probes, strict=True) if a and b] or [None, None]
                median = statistics.median(times[0]) * 1e3
                row = ModelRow(
                    model=name,
                    variant=variant,
                    batch=batch,
                    original_ms=median,
                    plain_ratio=ratios[0],
                    deployed_ratio=ratios[1],
                    portable_ratio=ratios[2],
                    max_rel_diff=difference,
                    nodes_original=counts[0],
                    nodes_deployed=counts[1],
                    load_ratio=loads[0],
                    memory_ratio=loads[1],
                )
                rows.append(row)
                if report is not None:
                    report(row)
    return rows


_COLUMNS = "model variant batch original plain deployed portable diff nodes nodes load memory".split()  # noqa: SIM905
_LINE = "{:14} {:9} {:>5} {:>10} {:>7} {:>8} {:>8} {:>9} {:>6} {:>6} {:>6} {:>6}"


def _line(row: ModelRow) -> str:
    rest = ["-" if value is None else f"{value:.3f}" for value in (row.load_ratio, row.memory_ratio)]
    ratios = [f"{value:.3f}" for value in (row.plain_ratio, row.deployed_ratio, row.portable_ratio)]
    name, nodes = Path(row.model).stem[:14], (row.nodes_original, row.nodes_deployed)
    return _LINE.format(
        name, row.variant, row.batch, f"{row.original_ms:.2f} ms", *ratios, f"{row.max_rel_diff:.1e}", *nodes, *rest
    )


def main(
    models: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(NETWORK_NAMES)}, or ONNX files.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="A variant; may be repeated.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="A batch size; may be repeated.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of a text.")] = 128,
    threads: Annotated[int, typer.Option(help="Threads of every session.")] = 2,
    runs: Annotated[int, typer.Option(help="Counted runs of each file.")] = 20,
    fresh: Annotated[int, typer.Option(help="Fresh processes for load time and memory.")] = 3,
    cpu_time: Annotated[bool, typer.Option(help="Processor time instead of the clock.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder of exported networks.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure original, plain LAuReL, deployed and portable side by side."""
    rows: list[ModelRow] = []
    if not json_:
        typer.echo(_LINE.format(*_COLUMNS))
    for name in models or NETWORK_NAMES:
        batches = tuple(batch or ((1,) if name == "gpt2-decode" else (1, 8)))
        rows += measure(
            name,
            tuple(variant or VARIANTS),
            batches,
            tokens=tokens,
            threads=threads,
            runs=runs,
            fresh=fresh,
            cpu_time=cpu_time,
            cache=cache,
            report=None if json_ else lambda row: typer.echo(_line(row)),
        )
    if json_:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    typer.run(main)
