"""``finetune`` on ONNX files: what is trained, what is written, what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from finetune_toy import toy_data, toy_onnx
from models import run_onnx
from onnx import numpy_helper
from safetensors.numpy import load_file
from tolerance import assert_close

import laurel_graph as lg
from laurel_graph.adapters.trained import trained_tensors
from laurel_graph.errors import (
    ConfigError,
    DataError,
    ModelError,
    OutputError,
    SelectorError,
    TrainingError,
    VerificationError,
)
from laurel_graph.opset.schema import PREFIX
from laurel_graph.tools.finetuning import onnx_task
from laurel_graph.tools.finetuning.finetune import FinetuneOptions, finetune


def initializers(path):
    return {t.name: t.SerializeToString() for t in onnx.load(path).graph.initializer}


@pytest.fixture
def options(tmp_path):
    toy_onnx(tmp_path / "base.onnx")
    config = lg.LaurelConfig(variant="rw+lr", rank=3)
    lg.transform(tmp_path / "base.onnx", config, output=tmp_path / "model.onnx")
    for name, data in (("train", toy_data()), ("valid", toy_data(60, 1))):
        np.savez(tmp_path / f"{name}.npz", **data.batch(range(len(data))))
    return FinetuneOptions(
        model=tmp_path / "model.onnx", data=str(tmp_path / "train.npz"), tuned=tmp_path / "tuned.onnx",
        validation=str(tmp_path / "valid.npz"), output="probabilities", epochs=6, batch_size=16, lr=0.03, quiet=True,
    )  # fmt: skip


def feeds(options, count=5):
    with np.load(options.validation) as data:
        return {"x": data["x"][:count]}


def test_finetune_improves_the_model_and_keeps_the_base_when_run(options, tmp_path):
    before = initializers(options.model)
    report = finetune(replace(options, adapter=tmp_path / "adapter.safetensors"))
    assert report.training.after[0] > report.training.before[0] + 2 * report.training.before[1]
    after = initializers(options.tuned)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {n for n in after if n.startswith(PREFIX)}
    assert report.new_parameters == 2 * (2 + 2 * 3 * 12) and report.head_parameters == 0
    assert report.base_parameters == sum(
        numpy_helper.to_array(t).size for t in onnx.load(tmp_path / "base.onnx").graph.initializer
    )
    assert report.notes == ("'probabilities' is a Softmax; cross_entropy is applied to what enters it, 'last.out'.",)
    assert not options.checkpoint.exists()
    assert options.model.stat().st_mtime <= options.tuned.stat().st_mtime


def test_tuned_file_equals_the_module_when_run_on_onnxruntime(options):
    report = finetune(options)
    module, inputs = lg.import_onnx(options.tuned), feeds(options)
    expected = module(torch.from_numpy(inputs["x"]))
    for actual, output in zip(run_onnx(onnx.load(options.tuned), inputs, optimize=True), expected, strict=True):
        assert_close(actual, output.detach().numpy())
    assert report.difference <= 1e-5


def test_tuned_file_is_loaded_from_the_disk_before_it_or_its_adapter_is_there(options, tmp_path, monkeypatch):
    options = replace(options, adapter=tmp_path / "adapter.safetensors", epochs=1)
    before = {path.name for path in tmp_path.iterdir()}
    make_session = onnx_task.make_session

    def refuse(model, folder):
        if not isinstance(model, Path):
            return make_session(model, folder)
        assert onnx.load(model).graph.node and not options.tuned.exists() and not options.adapter.exists()
        raise VerificationError("does not load")

    monkeypatch.setattr(onnx_task, "make_session", refuse)
    with pytest.raises(VerificationError, match="does not load"):
        finetune(options)
    assert {path.name for path in tmp_path.iterdir()} == before | {options.checkpoint.name}
    monkeypatch.undo()
    finetune(replace(options, resume=True))
    assert {path.name for path in tmp_path.iterdir()} == before | {"tuned.onnx", "adapter.safetensors"}


def test_finetune_gives_the_original_back_when_the_adapter_is_removed(options, tmp_path):
    finetune(options)
    lg.remove(options.tuned, output=tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "base.onnx").read_bytes()


def test_adapter_gives_the_tuned_model_when_applied_to_the_transformed_one(options, tmp_path):
    report = finetune(replace(options, adapter=tmp_path / "adapter.safetensors", epochs=2))
    lg.apply_adapter(options.model, report.adapter, output=tmp_path / "applied.onnx")
    expected = run_onnx(onnx.load(options.tuned), feeds(options))
    for actual, output in zip(run_onnx(onnx.load(tmp_path / "applied.onnx"), feeds(options)), expected, strict=True):
        assert_close(actual, output)
    size = sum(array.nbytes for array in load_file(report.adapter).values())
    assert size > 0


def test_adapter_is_for_onnxruntime_when_its_name_says_so(options, tmp_path):
    import onnxruntime as ort

    config = lg.LaurelConfig(variant="rw+lr", rank=3)
    lg.transform(tmp_path / "base.onnx", config, output=tmp_path / "inputs.onnx", adapter_inputs=True)
    finetune(replace(options, adapter=tmp_path / "a.onnx_adapter"))
    adapter, run = ort.LoraAdapter(), ort.RunOptions()
    adapter.Load(str(tmp_path / "a.onnx_adapter"))
    run.add_active_adapter(adapter)
    x = feeds(options)
    assert_close(lg.session(tmp_path / "inputs.onnx").run(None, x, run)[0], run_onnx(onnx.load(options.tuned), x)[0])


def test_finetune_resumes_to_the_same_bits_when_stopped(options, monkeypatch, tmp_path):
    finetune(replace(options, tuned=tmp_path / "whole.onnx", checkpoint=None))
    from laurel_graph.tools.finetuning.train_options import TrainOptions

    rate = TrainOptions.rate

    def stop_at_step_20(self, step, steps):
        if step == 20:
            raise KeyboardInterrupt
        return rate(self, step, steps)

    monkeypatch.setattr(TrainOptions, "rate", stop_at_step_20)
    with pytest.raises(KeyboardInterrupt):
        finetune(replace(options, checkpoint_every=6))
    assert options.checkpoint.exists() and not options.tuned.exists()
    monkeypatch.undo()
    finetune(replace(options, resume=True))
    assert options.tuned.read_bytes() == (tmp_path / "whole.onnx").read_bytes()


def test_head_is_added_and_trained_when_asked(options, tmp_path):
    with np.load(options.data) as data:
        np.savez(tmp_path / "five.npz", x=data["x"], label=data["label"] + 2)
    five = replace(options, data=str(tmp_path / "five.npz"), validation="0.2", output=None, head=5)
    report = finetune(five)
    assert (report.value, report.head_parameters) == ("head.logits", WIDTH_OF_FEATURES * 5 + 5)
    assert report.training.after[0] > 0.6
    tuned = onnx.load(options.tuned)
    onnx.checker.check_model(tuned)
    assert [o.name for o in tuned.graph.output] == ["probabilities", "features", "head.logits"]
    logits = run_onnx(tuned, feeds(options))[2]
    assert logits.shape == (5, 5)
    before, after = initializers(options.model), initializers(options.tuned)
    assert {n for n in before if before[n] != after[n]} == {n for n in before if n.startswith(PREFIX)}


WIDTH_OF_FEATURES = 12


def test_head_alone_trains_when_the_model_is_not_transformed(options, tmp_path):
    report = finetune(replace(options, model=tmp_path / "base.onnx", output="features", head=3))
    assert report.new_parameters == 0 and report.head_parameters == 39
    assert report.training.after[0] > report.training.before[0]


def test_further_initializers_train_when_named(options):
    report = finetune(replace(options, train=("last.*",), epochs=2))
    before, after = initializers(options.model), initializers(options.tuned)
    changed = {n for n in before if before[n] != after[n]}
    assert {"last.weight", "last.bias"} == {n for n in changed if not n.startswith(PREFIX)}
    assert report.further_parameters == 39
    with pytest.raises(SelectorError, match=r"'lost\.\*' matches no tensor"):
        finetune(replace(options, train=("lost.*",)))


def test_embedding_trains_towards_targets_when_the_loss_is_cosine(options, tmp_path):
    with np.load(options.data) as data:
        aim = np.roll(data["x"] @ np.ones((6, 12), np.float32), 1, 1)
        aim[:, ::2] *= -1
        np.savez(tmp_path / "aim.npz", x=data["x"], aim=aim)
    report = finetune(replace(options, data=str(tmp_path / "aim.npz"), validation="0.2", loss="cosine", output="x1"))
    assert report.training.metric == "loss" and report.training.after[0] < report.training.before[0]
    assert report.notes == () and report.difference <= 1e-5


def test_pairs_train_towards_scores_when_both_sides_are_given(options, tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 80, 6)).astype(np.float32)
    score = (np.sign(a[:, 0] * b[:, 0]) / 2).astype(np.float32)
    np.savez(tmp_path / "pairs.npz", **{"x": a, "x.2": b, "score": score})
    pairs = replace(
        options, data=str(tmp_path / "pairs.npz"), validation=None, loss="cosine", output="features", epochs=20
    )
    report = finetune(pairs)
    history = report.training.history
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    with pytest.raises(ConfigError, match="does not go with pairs"):
        finetune(replace(pairs, loss="mse"))


def test_distill_approaches_the_teacher_when_given_one(options, tmp_path):
    finetune(replace(options, tuned=tmp_path / "teacher.onnx", checkpoint=None))
    with np.load(options.data) as data:
        np.savez(tmp_path / "inputs.npz", x=data["x"])
    student = replace(
        options, data=str(tmp_path / "inputs.npz"), validation="0.2", loss="distill", teacher=tmp_path / "teacher.onnx"
    )
    report = finetune(student)
    assert report.training.after[0] < 0.2 * report.training.before[0]
    with pytest.raises(TrainingError, match="already equals its teacher"):
        finetune(replace(student, teacher=None))


def test_model_with_fixed_batch_trains_when_batches_are_larger(options, tmp_path):
    toy_onnx(tmp_path / "fixed_base.onnx", batch=4)
    lg.transform(tmp_path / "fixed_base.onnx", lg.LaurelConfig(rank=3), output=tmp_path / "fixed.onnx")
    fixed = finetune(replace(options, model=tmp_path / "fixed.onnx", epochs=2))
    free = finetune(replace(options, tuned=tmp_path / "free.onnx", checkpoint=None, epochs=2))
    assert fixed.training.history[-1]["loss"] == pytest.approx(free.training.history[-1]["loss"], rel=1e-4)


def test_half_precision_file_keeps_its_types_when_tuned(options, tmp_path):
    toy_onnx(tmp_path / "half_base.onnx", dtype="float16")
    lg.transform(tmp_path / "half_base.onnx", lg.LaurelConfig(rank=3), output=tmp_path / "half.onnx")
    report = finetune(replace(options, model=tmp_path / "half.onnx"))
    assert report.training.after[0] > report.training.before[0]
    assert {t.data_type for t in onnx.load(options.tuned).graph.initializer} == {onnx.TensorProto.FLOAT16}


def test_weights_stay_in_their_file_when_they_are_external(options, tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "out").mkdir()
    onnx.save(
        onnx.load(tmp_path / "base.onnx"), tmp_path / "large/base.onnx", save_as_external_data=True,
        location="weights.bin", size_threshold=0,
    )  # fmt: skip
    lg.transform(tmp_path / "large/base.onnx", lg.LaurelConfig(rank=3), output=tmp_path / "large/model.onnx")
    weights = (tmp_path / "large/weights.bin").read_bytes()
    finetune(replace(options, model=tmp_path / "large/model.onnx", tuned=tmp_path / "out/tuned.onnx", checkpoint=None))
    assert (tmp_path / "large/weights.bin").read_bytes() == weights == (tmp_path / "out/weights.bin").read_bytes()


def test_trained_tensors_are_those_of_the_file_when_nothing_was_trained(options):
    values = trained_tensors(lg.import_onnx(options.model))
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(options.model).graph.initializer}
    assert values.keys() == {name for name in stored if name.startswith(PREFIX)}
    assert all(np.array_equal(values[name], stored[name]) for name in values)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"output": None}, ModelError, "has 2 outputs: probabilities, features; choose one with --value"),
        ({"output": "feature"}, ModelError, "computes no value 'feature'.*Near names: features"),
        ({"loss": "hinge"}, ConfigError, "loss = 'hinge' is not valid: expected one of cross_entropy"),
        ({"metric": "f1"}, ConfigError, "metric = 'f1' is not valid"),
        ({"metric": "accuracy", "validation": None}, ConfigError, "metric needs data to measure on: give --validation"),
        ({"patience": 2, "validation": None}, ConfigError, "patience needs data to measure on: give --validation"),
        ({"target": "labels"}, DataError, "target 'labels' is missing; it holds 'x', 'label'.*Near names: label"),
        ({"loss": "mse"}, DataError, r"target has shape \(16,\), but the output has \(16, 3\)"),
        ({"data": "nowhere.npz"}, DataError, "nowhere.npz: no such data; expected an .npz, .parquet or .csv file"),
        ({"loss": "lost.module:loss"}, ConfigError, "module 'lost.module' cannot be imported"),
        ({"validation": "1.5"}, DataError, "leaves one empty"),
        ({"validation": "nan"}, DataError, "leaves one empty"),
        ({"head": 0}, ConfigError, "head = 0 is not valid"),
        ({"adapter": "a.onnx"}, ConfigError, r"expected a file ending in \.safetensors or \.onnx_adapter"),
        ({"checkpoint": "a.onnx", "tuned": "a.onnx"}, ConfigError, "is another file of this run"),
    ],
)
def test_finetune_refuses_with_a_clear_sentence_when_an_option_is_wrong(options, changes, error, words):
    with pytest.raises(error, match=words):
        finetune(replace(options, **changes))
    assert not options.tuned.exists()


@pytest.mark.parametrize("name", ["data", "validation", "teacher"])
def test_finetune_refuses_when_an_output_would_overwrite_what_it_reads(options, tmp_path, name):
    options = replace(options, loss="distill", teacher=tmp_path / "base.onnx")
    before = Path(getattr(options, name)).read_bytes()
    with pytest.raises(OutputError, match="is the input; the input is never overwritten"):
        finetune(replace(options, tuned=getattr(options, name)))
    assert Path(getattr(options, name)).read_bytes() == before


def test_finetune_refuses_when_the_output_is_the_input_or_the_model_is_plain(options, tmp_path):
    with pytest.raises(OutputError):
        finetune(replace(options, tuned=options.model))
    with pytest.raises(ConfigError, match="has no LAuReL tensors to train: run `laurel transform` first"):
        finetune(replace(options, model=tmp_path / "base.onnx"))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y": np.zeros((4, 6)), "label": np.zeros(4, int)}, "model input 'x' is missing; it holds 'y', 'label'"),
        ({"x": np.zeros((4, 7)), "label": np.zeros(4, int)}, r"'x' has shape \(N, 7\), but the model takes \(N, 6\)"),
        ({"x": np.zeros((4, 6, 1)), "label": np.zeros(4, int)}, r"'x' has shape \(N, 6, 1\)"),
        ({"x": np.zeros((4, 6)), "label": np.zeros(5, int)}, "differ in their number of samples: x 4, label 5"),
        (
            {"x": np.zeros((4, 6)), "label": np.array(list("abcd"))},
            "label. is there but unusable",
        ),
        ({"x": np.zeros((4, 6)), "label": np.full(4, 3)}, "class numbers from 3 to 3, but the output has 3 classes"),
        ({"x": np.zeros((4, 6)), "label": np.zeros(4)}, "needs integer class numbers as target, found torch.float64"),
        ({"x": np.zeros((0, 6)), "label": np.zeros(0, int)}, "no samples"),
    ],
)
def test_finetune_refuses_with_a_clear_sentence_when_the_data_does_not_fit(options, tmp_path, arrays, words):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=words):
        finetune(replace(options, data=str(tmp_path / "bad.npz"), validation=None))
