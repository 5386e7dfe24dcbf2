"""Measures what each exact form of a LAuReL residual costs: the table that deployment chooses by.

    python -m laurel_graph.tools.benchmarks.forms            measures and prints
    python -m laurel_graph.tools.benchmarks.forms --write    and replaces the table of the package

Each place is one residual connection of a usual size between the operators that usually stand around it. A form's cost
is the first quartile of its times less that of the plain residual's, taken in turns on one thread, in µs: what other
programs on the machine add lies above the first quartile.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper, numpy_helper

from laurel_graph.opset.functions import attach, detach
from laurel_graph.opset.schema import DOMAIN, Operator
from laurel_graph.outputs import write as write_file
from laurel_graph.passes.deploy.choose import FORMS, fuse
from laurel_graph.passes.deploy.costs import TABLE, CostModel, SiteSizes

from .latency import latencies

_IMAGES = (
    (3136, 256, 64, 16), (784, 512, 128, 16), (196, 1024, 256, 16), (49, 2048, 512, 16), (3136, 24, 144, 6),
    (784, 32, 192, 8), (196, 64, 384, 16), (196, 96, 576, 16), (49, 160, 960, 16),
)  # fmt: skip
_TEXTS = (
    (1, 768, 768, 32), (1, 768, 3072, 32), (128, 768, 768, 32), (128, 768, 3072, 32), (1024, 768, 3072, 32),
    (197, 384, 384, 32), (197, 384, 1536, 32),
)  # fmt: skip


def places() -> list[SiteSizes]:
    """Returns the places that are measured."""
    found = []
    for rows, width, branch, rank in _IMAGES:
        found.append(SiteSizes(True, rows, width, branch, rank))
    for rows, width, branch, rank in _IMAGES[1:3]:
        found += [SiteSizes(True, rows, width, branch, rank, 3), SiteSizes(True, rows, width, branch, 0, 3)]
    for rows, width, branch, rank in _TEXTS:
        found += [SiteSizes(False, rows, width, branch, rank, 0, norm) for norm in (False, True)]
    for rows, width, branch, rank in _TEXTS[2:4]:
        found += [SiteSizes(False, rows, width, branch, r, 3, norm) for norm in (False, True) for r in (0, rank)]
    return found


def model_at(place: SiteSizes, laurel: bool) -> onnx.ModelProto:
    """Returns one residual connection with or without LAuReL, as folding leaves it."""
    rng = np.random.default_rng(0)
    tensors: list[onnx.TensorProto] = []

    def weight(name: str, *shape: int) -> str:
        value = rng.normal(0, 1 / np.sqrt(max(shape)), shape).astype(np.float32)
        tensors.append(numpy_helper.from_array(value, name))
        return name

    width, branch = place.width, place.branch or place.width
    side = round(place.rows**0.5)
    shape = [1, width, side, side] if place.channels else [1, place.rows, width]
    inputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, shape)]
    node = helper.make_node
    previous = [f"p{j}" for j in range(place.previous if laurel else 0)]
    if place.channels:
        nodes = [node("Conv", ["z", weight("d", width, 1, 1, 1)], ["x"], group=width)]
        nodes += [
            node("Conv", ["z", weight(f"d{name}", width, 1, 1, 1)], [name], group=width)
            for name in (f"p{j}" for j in range(place.previous))
        ]
        nodes += [node("Conv", ["x", weight("V", branch, width, 1, 1)], ["v"]), node("Relu", ["v"], ["h"])]
        nodes += [node("Conv", ["h", weight("W", width, branch, 1, 1), weight("c", width)], ["f"])]
    else:
        inputs.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, place.rows, branch]))
        nodes = [node("Identity", ["z"], ["x"])]
        inputs += [helper.make_tensor_value_info(f"p{j}", TensorProto.FLOAT, shape) for j in range(place.previous)]
        nodes += [
            node("MatMul", ["h", weight("W", branch, width)], ["m"]),
            node("Add", ["m", weight("c", width)], ["f"]),
        ]
    if laurel:
        op = Operator(lr=place.rank > 0, previous=place.previous, layout="2d" if place.channels else "")
        extra = [weight("A", width, place.rank), weight("B", place.rank, width)] if op.lr else []
        extra += [weight("gamma", place.previous), *previous] if place.previous else []
        nodes.append(node(op.name, ["x", "f", *extra], ["y"], domain=DOMAIN))
    else:
        nodes.append(node("Add", ["x", "f"], ["y"]))
    if place.channels:
        nodes += [node("Relu", ["y"], ["r"]), node("GlobalAveragePool", ["r"], ["out"])]
        nodes += [node("GlobalAveragePool", [f"p{j}"], [f"o{j}"]) for j in range(place.previous)]
        outputs = ["out", *(f"o{j}" for j in range(place.previous))]
    elif place.norm:
        norm = node("LayerNormalization", ["y", weight("g", width), weight("o", width)], ["out"], epsilon=1e-5)
        nodes.append(norm)
        outputs = ["out"]
    else:
        outputs = ["y"]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "place", inputs, values, tensors)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def measure(place: SiteSizes, runs: int = 60) -> dict[str, float]:
    """Returns form to µs more than the plain residual at one place."""
    feeds = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "plain.onnx"]
        plain = model_at(place, laurel=False)
        for value in plain.graph.input:
            dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
            feeds[value.name] = np.random.default_rng(1).normal(size=dims).astype(np.float32)
        onnx.save(plain, paths[0])
        forms = []
        for form in FORMS:
            model = model_at(place, laurel=True)
            done = fuse(model, CostModel.only(form))
            if done[0].form != form:
                continue
            detach(model)
            attach(model)
            forms.append(form)
            paths.append(Path(folder) / f"{form}.onnx")
            onnx.save(model, paths[-1])
        taken = latencies(paths, feeds, threads=1, runs=runs, cpu_time=True)
    low = [float(np.percentile(times, 25)) * 1e6 for times in taken]
    return {form: round(cost - low[0], 2) for form, cost in zip(forms, low[1:], strict=True)}


def main(
    write: Annotated[bool, typer.Option(help="Replace the table of the package.")] = False,
    runs: Annotated[int, typer.Option(min=3, help="Turns per place.")] = 60,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure what each exact form of a residual costs on this machine."""
    rows = []
    for place in places():
        costs = measure(place, runs)
        rows.append((place, costs))
        if not json_:
            sizes = (
                f"{place.rows:5d} x {place.width:4d}  branch {place.branch:4d}  r {place.rank:2d}  k {place.previous}"
            )
            kind = "channels" if place.channels else "norm" if place.norm else "no norm"
            typer.echo(f"{sizes}  {kind:8}  " + "  ".join(f"{form} {cost:8.1f}" for form, cost in costs.items()))
    table = CostModel(tuple(rows)).to_rows()
    if json_:
        typer.echo(json.dumps({"rows": table}))
    if write:
        write_file(TABLE, ("[\n" + ",\n".join(json.dumps(row) for row in table) + "\n]\n").encode())


if __name__ == "__main__":
    typer.run(main)
