"""The whole way of every architecture of the zoo: exported, rewritten, deployed and compared on ONNX Runtime.

    python -m laurel_graph.tools.zoo.deploy [--json] [--only GLOB,...] [--variants rw,rw+lr,rw+lr+pa]
    python -m laurel_graph.tools.zoo.deploy --models A.onnx B.onnx      files in place of the architectures

Before deployment all LAuReL tensors are drawn far from their start (α, β in [0.5, 1.5], B of the size of A). A row that
ends in an error names the step that refused. Exit code 1 if there is one, but for architectures that do not export.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import onnx

from laurel_graph.config import LaurelConfig
from laurel_graph.passes.deploy.deploy import deploy_file
from laurel_graph.passes.deploy.report import DeployReport
from laurel_graph.passes.pipeline import transform
from laurel_graph.tools.benchmarks.models import VARIANTS, draw_tensors
from laurel_graph.tools.console import note, print_json, print_table

from .architectures import Specimen, read_zoo, silence
from .detection import is_wanted, one_line


@dataclass(frozen=True)
class DeployRow:
    """One model with one variant.

    Attributes:
        model: the architecture or file.
        variant: the LAuReL variant.
        difference: largest difference of the deployed to the rewritten model over an output's scale.
        portable: the same for the file of plain operators.
        forms: how many sites took each form.
        multiplied: Mul nodes that β left behind.
        failure: the step that refused and why, or "".
    """

    model: str
    variant: str
    difference: float = 0.0
    portable: float = 0.0
    forms: dict[str, int] = field(default_factory=dict)
    multiplied: int = 0
    failure: str = ""


def measure(path: Path, name: str, variants: Iterable[str]) -> Iterator[DeployRow]:
    """Yields one row per variant of the ONNX file *path*."""
    for variant in variants:
        step = "transform"
        with tempfile.TemporaryDirectory() as folder:
            trained, served = Path(folder) / "trained.onnx", Path(folder) / "served.onnx"
            try:
                transform(path, LaurelConfig(variant=variant), output=trained)
                draw_tensors(trained)
                step = "deploy"
                done = deploy_file(trained, served)
                step = "deploy --portable"
                plain = deploy_file(trained, served, portable=True)
            except Exception as error:  # a sweep goes on with the next one
                yield DeployRow(name, variant, failure=f"{step}: {one_line(error)}")
                continue
        forms = Counter(site["form"] for site in done.to_dict()["sites"])
        left = len(done.fold.multiplied)
        yield DeployRow(name, variant, _largest(done), _largest(plain), dict(forms), left)


def _largest(report: DeployReport) -> float:
    return max(relative for _, relative in report.differences.values())


def architectures(only: str, folder: Path) -> Iterator[tuple[Path, str]]:
    """Yields (file, name) of the architectures of the zoo that the dynamo exporter takes."""
    for entry in read_zoo():
        if not is_wanted(entry.name, only):
            continue
        path = folder / f"{entry.name}.onnx"
        try:
            with silence():
                onnx.save(Specimen(entry).dynamo(), path)
        except Exception as error:  # exporters run the architecture's own code
            note(f"{entry.name} does not export: {one_line(error)}")
            continue
        yield path, entry.name
        path.unlink()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    parser = argparse.ArgumentParser(prog="zoo_deploy", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", type=Path, help="ONNX files (default: the architectures of the zoo)")
    parser.add_argument("--only", default="*", help="names or globs of architectures, separated by commas")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="variants, separated by commas")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(argv)
    rows: list[DeployRow] = []
    with tempfile.TemporaryDirectory() as folder:
        found = [(path, path.stem) for path in options.models or ()]
        for path, name in found or architectures(options.only, Path(folder)):
            note(name)
            rows += measure(path, name, options.variants.split(","))
    if options.json:
        print_json({"rows": [asdict(row) for row in rows]})
    else:
        _print(rows)
    return 1 if any(row.failure for row in rows) else 0


def _print(rows: Sequence[DeployRow]) -> None:
    print_table(
        "deployed against rewritten",
        ("model", "variant", "difference", "portable", "forms", "Mul left", "failure"),
        [
            (
                row.model,
                row.variant,
                f"{row.difference:.1e}",
                f"{row.portable:.1e}",
                ", ".join(f"{count} {form}" for form, count in sorted(row.forms.items())),
                row.multiplied,
                row.failure,
            )
            for row in rows
        ],
    )
    done = [row for row in rows if not row.failure]
    most = max((max(row.difference, row.portable) for row in done), default=0.0)
    note(f"{len(done)} of {len(rows)} deployed; largest difference {most:.1e}")


if __name__ == "__main__":
    raise SystemExit(main())
