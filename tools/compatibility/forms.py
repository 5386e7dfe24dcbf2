"""The forms of one model's file: as it was, transformed, deployed, each with plain nodes alone too, and ORT format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from laurel_graph.config import LaurelConfig
from laurel_graph.passes.deploy.deploy import deploy_file
from laurel_graph.passes.pipeline import transform
from laurel_graph.passes.rewrite.forms import inline

from .changers import write_ort_format

FORMS = ("original", "transformed", "transformed --portable", "deployed", "deployed --portable", "ORT format")
"""In the order of the table."""

VARIANT, RANK, STEP = "rw+lr+pa", 4, 0.3
"""What is put in, and how far its parameters are moved: what trained weights do is seen in the outputs."""


def write_forms(base: Path, folder: Path) -> dict[str, Path]:
    """Writes every form of the model *base*, the LAuReL parameters of all moved alike; returns form to file."""
    paths = {form: folder / f"{form.replace(' --', '-').replace(' ', '-').lower()}.onnx" for form in FORMS}
    paths["original"], paths["ORT format"] = base, folder / "deployed.ort"
    start = folder / "start.onnx"
    transform(base, LaurelConfig(VARIANT, rank=RANK, previous=2), output=start)
    tune(start, paths["transformed"])
    inline(paths["transformed"], paths["transformed --portable"])
    deploy_file(paths["transformed"], paths["deployed"])
    deploy_file(paths["transformed"], paths["deployed --portable"], portable=True)
    write_ort_format(paths["deployed"], paths["ORT format"])
    return paths


def tune(source: Path, output: Path, seed: int = 0) -> None:
    """Writes *source* with its LAuReL parameters moved, as training moves them: α and β stay within their bounds."""
    import torch

    import laurel_graph as lg
    from laurel_graph.importer import write_back

    module = lg.import_onnx(source)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lg.trainable_parameters(module).values():
            scale = STEP / np.sqrt(parameter.shape[-1]) if parameter.ndim >= 2 else STEP
            parameter.add_(scale * torch.randn(parameter.shape, generator=random).to(parameter.dtype))
    write_back(module, source, output)
