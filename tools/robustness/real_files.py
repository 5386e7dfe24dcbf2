"""Takes model files as people ship them through the whole path: inspect, transform, train, deploy, verify, remove.

``python -m`` this module ``FOLDER [--variant rw+lr] [--only GLOB]``: every ``.onnx`` file below the folder. "Trained"
tensors are drawn near their start, as far from it as a short fine-tuning goes. A line says what became of each file;
the program returns 1 if a right deployment was refused or a wrong one written, if a step failed with anything but a
:class:`~laurel_graph.errors.LaurelError`, or if ``remove`` did not give the bytes of the graph back.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from laurel_graph import onnx_file
from laurel_graph.config import LaurelConfig
from laurel_graph.errors import LaurelError, NoResidualError
from laurel_graph.opset.schema import read_specs, tensor_name
from laurel_graph.passes.deploy.deploy import deploy_file
from laurel_graph.passes.pipeline import remove, transform
from laurel_graph.passes.verify import verify
from laurel_graph.tools.console import print_table, say

STEP = 0.1
"""How far tensors are moved from their start."""

SPOILED = ("FAILED", "REFUSED", "DIFFERS")
"""Words of an outcome that must not be."""


def tune(path: Path, output: Path, rng: np.random.Generator) -> None:
    """Writes *path* with LAuReL tensors as a short fine-tuning leaves them."""
    model = onnx_file.read(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for site, spec in read_specs(model).items():
        for name in spec.tensor_shapes():
            tensor = tensors[tensor_name(site, name)]
            value = numpy_helper.to_array(tensor)
            scale = STEP / np.sqrt(spec.width) if name in ("B", "previous_B") else STEP
            moved = value.astype(np.float64) + scale * rng.standard_normal(value.shape)
            tensor.CopyFrom(numpy_helper.from_array(moved.astype(value.dtype), tensor.name))
    onnx.save(model, output)


def try_file(path: Path, config: LaurelConfig, folder: Path) -> Iterator[tuple[str, str]]:
    """Yields (step, outcome) for one file; every step after the first needs the one before."""
    transformed, tuned = folder / "transformed.onnx", folder / "tuned.onnx"
    try:
        result = transform(path, config, output=transformed)
    except NoResidualError:
        yield "transform", "none found"
        return
    report = result.report
    yield "transform", f"{len(report.plans)} of {len(report.detection.residuals)}"
    yield "start", _compared(path, transformed)
    removed = folder / "removed.onnx"
    remove(transformed, removed)
    same = onnx_file.read(removed).graph == onnx_file.read(path).graph
    yield "remove", "same" if same else "DIFFERS"
    tune(transformed, tuned, np.random.default_rng(0))
    for step, portable in (("deploy", False), ("portable", True)):
        begin = time.perf_counter()
        try:
            deployed = deploy_file(tuned, folder / f"{step}.onnx", portable=portable)
        except LaurelError as error:
            yield step, f"REFUSED {error}"
            continue
        verification = deployed.verification
        assert verification is not None
        worst = max((item.max_rel / (item.tolerance or 1) for item in verification.sites), default=0.0)
        yield step, f"{worst:.2f} of allowed, {time.perf_counter() - begin:.0f} s"


def _compared(path: Path, transformed: Path) -> str:
    try:
        found = verify(path, transformed)
    except LaurelError as error:
        return f"REFUSED {error}"
    first = found.first_difference
    return "equal" if first is None else f"DIFFERS {first.output} {first.max_rel:.2g}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 1 if anything went wrong."""
    parser = argparse.ArgumentParser(prog="real_files", description="Takes the files of a folder through every step.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variant", default="rw+lr")
    parser.add_argument("--only", default="*", help="glob of the path below the folder")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    onnxruntime.set_default_logger_severity(4)
    config, spoiled, rows = LaurelConfig(variant=options.variant), 0, []
    for path in sorted(options.folder.rglob("*.onnx")):
        name = str(path.relative_to(options.folder))
        if not fnmatch(name, options.only):
            continue
        with TemporaryDirectory() as folder:
            outcomes: dict[str, str] = {}
            try:
                for step, outcome in try_file(path, config, Path(folder)):
                    outcomes[step] = outcome
            except LaurelError as error:
                outcomes["error"] = f"{type(error).__name__}: {error}"
            except Exception:
                outcomes["error"] = "FAILED " + traceback.format_exc()
        for step, outcome in outcomes.items():
            say(f"{name}  {step}: {outcome}")
        bad = [step for step, outcome in outcomes.items() if outcome.startswith(SPOILED)]
        spoiled += bool(bad)
        rows.append((name, ", ".join(bad) or ("none found" if len(outcomes) == 1 else "right")))
    print_table(f"{len(rows)} files, {options.variant}", ("file", "outcome"), rows)
    return int(spoiled > 0)


if __name__ == "__main__":
    sys.exit(main())
