"""Deploys twenty-one networks and changes every constant that it wrote (``python -m`` this package).

A change of 1 % that moves some site or output of the deployed model by more than 1e-4 of its scale must be caught by
``laurel verify``; the files as deployed must pass.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

import laurel_graph as lg
from laurel_graph.errors import NoResidualError
from laurel_graph.onnx_model.walk import copy_of
from laurel_graph.passes.verify.probe import Runner, bring_out, laurel_values, made_in
from laurel_graph.samples import STYLES, sample_inputs
from laurel_graph.tools.benchmarks.models import draw_tensors

from .networks import networks

VARIANTS = ("rw", "lr", "rw+lr", "rw+lr+pa")
CHANGE = 1.01
SEEN = 1e-4
"""A change that moves every site by less than this share of its scale need not be caught."""
SEEN_IN_16_BITS = 1e-2
"""The same in float16, where :data:`SEEN` is a tenth of one unit in the last place."""


@dataclass(frozen=True)
class Mutant:
    """One changed constant.

    Attributes:
        network: the network.
        variant: what was deployed.
        constant: the initializer, or node and attribute.
        moved: the largest difference it makes at any site or output, over the scale there.
        caught: verification says no.
        seen: from which difference on it has to.
    """

    network: str
    variant: str
    constant: str
    moved: float
    caught: bool
    seen: float = SEEN

    @property
    def missed(self) -> bool:
        """Whether verification should have said no and did not."""
        return self.matters and not self.caught

    @property
    def matters(self) -> bool:
        """Whether it moves a site by enough."""
        return self.moved > self.seen


def mutants_of(name: str, variant: str, folder: Path, *, portable: bool = False, most: int = 1000) -> list[Mutant]:
    """Deploys one network and returns its mutants.

    Args:
        name: one of :func:`~laurel_graph.tools.robustness.changed_constants.networks.networks`.
        variant: the LAuReL variant.
        folder: where files are written.
        portable: deploy in plain operators.
        most: how many constants are changed at most, spread over all of them.
    """
    base, trained, served, spoiled = (folder / f"{part}.onnx" for part in ("base", "trained", "served", "spoiled"))
    onnx.save(networks()[name](), base)
    try:
        lg.transform(base, lg.LaurelConfig(variant=variant, rank=4), output=trained)
    except NoResidualError:
        return []
    draw_tensors(trained)
    report = lg.deploy(trained, served, portable=portable)
    style = report.verification.style if report.verification is not None else "normal"
    if (wrong := lg.verify(trained, served).first_difference) is not None:
        raise AssertionError(f"{name}, {variant}: the deployed file itself is refused: {wrong}")
    before, deployed = onnx.load(trained), onnx.load(served)
    feeds = [
        sample_inputs(deployed, batch=3, seed=seed, style=style if style in STYLES else "normal", ragged=bool(seed))
        for seed in (0, 1)
    ]
    right = _inside(served, deployed, feeds)
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in deployed.graph.initializer)
    seen = SEEN_IN_16_BITS if half else SEEN
    found = []
    changes = list(_changed_constants(before, deployed))
    for constant, spoil in changes[:: max(1, -(-len(changes) // most))]:
        model = copy_of(deployed)
        spoil(model)
        onnx.save(model, spoiled)
        moved = _moved(right, _inside(spoiled, model, feeds))
        found.append(Mutant(name, variant, constant, moved, not lg.verify(trained, spoiled), seen))
    return found


@dataclass(frozen=True)
class _Spoil:
    """Changes one initializer, or one attribute of one node, by 1 %."""

    tensor: str = ""
    node: str = ""
    attribute: str = ""

    def __call__(self, model: ModelProto) -> None:
        for tensor in model.graph.initializer:
            if self.tensor and tensor.name == self.tensor:
                value = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array((value * CHANGE).astype(value.dtype), tensor.name))
        for node in model.graph.node:
            for item in node.attribute:
                if self.node and node.output[0] == self.node and item.name == self.attribute:
                    item.f *= CHANGE


def _changed_constants(before: ModelProto, after: ModelProto) -> Iterator[tuple[str, _Spoil]]:
    """The floating-point constants of the deployed model that the trained one does not have like this."""
    old = {tensor.name: tensor.SerializeToString() for tensor in before.graph.initializer}
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    for tensor in after.graph.initializer:
        if tensor.data_type in floats and old.get(tensor.name) != tensor.SerializeToString():
            yield tensor.name, _Spoil(tensor=tensor.name)
    kept = {node.SerializeToString() for node in before.graph.node}
    for node in after.graph.node:
        for item in node.attribute if node.SerializeToString() not in kept else ():
            if item.type == onnx.AttributeProto.FLOAT and item.f:
                yield f"{node.output[0]}.{item.name}", _Spoil(node=node.output[0], attribute=item.name)


def _inside(path: Path, model: ModelProto, feeds: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Every site and output, with optimisation off."""
    probe = copy_of(model)
    adds = [name for name, node in made_in(probe).items() if node.op_type == "Add"]
    bring_out(probe, [*laurel_values(probe), *adds])
    runner = Runner(path, probe, False)
    return [runner.run(feed) for feed in feeds]


def _moved(right: Sequence[dict[str, np.ndarray]], wrong: Sequence[dict[str, np.ndarray]]) -> float:
    most = 0.0
    for a, b in zip(right, wrong, strict=True):
        for name, value in a.items():
            true = value.astype(np.float64)
            finite = np.isfinite(true)
            scale = np.abs(true[finite]).max(initial=0.0)
            if scale > 0 and b[name].shape == value.shape:
                most = max(most, float(np.abs(true - b[name])[finite].max() / scale))
    return most


def main(names: Sequence[str]) -> int:
    """Prints a line per network and variant; the exit code tells whether all was caught."""
    if unknown := sorted(set(names) - set(networks())):
        sys.exit(f"there is no network {unknown[0]!r}: expected some of {', '.join(networks())}, or none for all.")
    missed, total, seen = [], 0, 0
    for name in names or networks():
        for variant in VARIANTS:
            for portable in (False, True):
                with tempfile.TemporaryDirectory() as folder:
                    found = mutants_of(name, variant, Path(folder), portable=portable)
                wrong = [mutant for mutant in found if mutant.missed]
                total, seen = total + len(found), seen + sum(mutant.matters for mutant in found)
                missed += wrong
                sys.stdout.write(
                    f"{name:<18} {variant:<9} {'portable' if portable else '':<9} {len(found):>3} constants, "
                    f"{sum(mutant.caught for mutant in found):>3} caught, {len(wrong)} missed\n"
                )
                sys.stdout.flush()
    for mutant in missed:
        sys.stdout.write(f"missed: {mutant}\n")
    sys.stdout.write(f"{total} constants changed, {seen} matter, {len(missed)} of them missed\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
