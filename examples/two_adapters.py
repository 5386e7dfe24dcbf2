"""One ONNX Runtime session that serves two tasks: the adapter is chosen per request.

The model is transformed once, its LAuReL tensors as overridable inputs. Each task trains an adapter of its own, which
is written in ONNX Runtime's format; the weights of the base are in memory once.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

import laurel_graph as lg
from laurel_graph.adapters import write_ort_adapter
from laurel_graph.tools.finetuning.finetune import FinetuneOptions, finetune


def write_model(path: Path) -> None:
    """Writes a small residual network, ``x (N, 8)`` to ``y (N, 2)``: stands for the trained model that you have."""
    rng = np.random.default_rng(0)

    def weight(name: str, rows: int, columns: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.standard_normal((rows, columns)) / rows**0.5).astype(np.float32), name)

    nodes = [helper.make_node("MatMul", ["x", "first"], ["h0"], "/first/MatMul")]
    for i in range(2):
        nodes += [
            helper.make_node("MatMul", [f"h{i}", f"layer{i}"], [f"p{i}"], f"/layers.{i}/MatMul"),
            helper.make_node("Tanh", [f"p{i}"], [f"f{i}"], f"/layers.{i}/Tanh"),
            helper.make_node("Add", [f"h{i}", f"f{i}"], [f"h{i + 1}"], f"/layers.{i}/Add"),
        ]
    nodes.append(helper.make_node("MatMul", ["h2", "last"], ["y"], "/last/MatMul"))
    weights = [weight("first", 8, 24), weight("layer0", 24, 24), weight("layer1", 24, 24), weight("last", 24, 2)]
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", d]) for n, d in (("x", 8), ("y", 2)))
    graph = helper.make_graph(nodes, "base", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def main(epochs: int = 15) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 8)).astype(np.float32)
    labels = {"sum": (x[:, :4].sum(1) > 0).astype(np.int64), "difference": (x[:, 0] > x[:, 7]).astype(np.int64)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "base.onnx")
        config = lg.LaurelConfig(variant="rw+lr", rank=6)
        lg.transform(folder / "base.onnx", config, output=folder / "model.onnx", adapter_inputs=True)
        for task, label in labels.items():
            np.savez(folder / f"{task}.npz", x=x, label=label)
            finetune(
                FinetuneOptions(
                    model=folder / "model.onnx",
                    data=str(folder / f"{task}.npz"),
                    tuned=folder / f"{task}.onnx",
                    epochs=epochs,
                    lr=1e-2,
                    quiet=True,
                )
            )
            write_ort_adapter(folder / f"{task}.onnx", folder / f"{task}.onnx_adapter")

        session = lg.session(folder / "model.onnx")
        accuracy: dict[str, dict[str, float]] = {}
        for served in (None, *labels):
            request = ort.RunOptions()
            if served is not None:
                adapter = ort.LoraAdapter()
                adapter.Load(str(folder / f"{served}.onnx_adapter"))
                request.add_active_adapter(adapter)
            answer = session.run(["y"], {"x": x}, request)[0].argmax(1)
            accuracy[served or "none"] = {task: float((answer == label).mean()) for task, label in labels.items()}
    for served, result in accuracy.items():
        print(f"adapter {served:10}  " + "  ".join(f"{task} {value:.3f}" for task, value in result.items()))
    return accuracy


if __name__ == "__main__":
    main()
