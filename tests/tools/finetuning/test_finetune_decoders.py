"""Decoders with a cache are fine-tuned on text, folder in and folder out."""

import json
import math

import numpy as np
import pytest
import torch
from folder_models import write_folder

import laurel_graph as lg
from laurel_graph.errors import ConfigError, DataError, OutputError
from laurel_graph.tools.finetuning.finetune import FinetuneOptions, finetune
from laurel_graph.tools.finetuning.losses import build_loss, build_metric

pytest.importorskip("tokenizers")
TEXT = "the cat sat on the mat. the dog sat on the log. " * 40


@pytest.fixture(scope="module", params=[{}, {"int4": True}, {"window": 8, "softcap": 5.0}], ids=str)
def transformed(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("decoder")
    return lg.transform(write_folder(place / "base", **request.param), output=place / "t").model


def options(model, place, **changes):
    (place / "a.txt").write_text(TEXT)
    given = {"model": model, "data": str(place / "a.txt"), "loss": "causal_lm", "validation": "0.2", "max_length": 32,
             "epochs": 2, "batch_size": 8, "lr": 1e-2, "tuned": place / "tuned", "quiet": True}  # fmt: skip
    return FinetuneOptions(**{**given, **changes})


def test_perplexity_falls_when_a_folder_learns_text(transformed, tmp_path):
    before = {path.name: path.read_bytes() for path in transformed.iterdir()}
    report = finetune(options(transformed, tmp_path, adapter=tmp_path / "a.safetensors"))
    assert report.training.metric == "perplexity"
    assert report.training.after[0] < 0.5 * report.training.before[0]
    assert report.value == "logits"
    assert report.difference < 1e-5
    assert {path.name: path.read_bytes() for path in transformed.iterdir()} == before
    tuned = {path.name: path.read_bytes() for path in (tmp_path / "tuned").iterdir()}
    assert {name for name in before if tuned[name] != before[name]} == {"model.onnx"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "a.txt", "tuned"]
    lg.apply_adapter(transformed, tmp_path / "a.safetensors", tmp_path / "applied")
    assert lg.verify(tmp_path / "tuned", tmp_path / "applied").equal
    assert lg.deploy(tmp_path / "tuned", tmp_path / "served").differences["logits"][1] < 2e-5


def test_rounded_activations_are_told_when_a_file_has_them(tmp_path):
    base = write_folder(tmp_path / "base", int4=True, accuracy=4)
    lg.transform(base, lg.LaurelConfig(variant="rw"), output=tmp_path / "t")
    report = finetune(options(tmp_path / "t", tmp_path, epochs=1))
    assert report.difference < 1e-5
    assert any("rounds activations to 8 bits" in note for note in report.notes)


def test_arrays_of_tokens_do_as_well_as_text(transformed, tmp_path):
    ids = np.random.default_rng(0).integers(3, 60, (24, 12))
    np.savez(tmp_path / "a.npz", input_ids=ids)
    report = finetune(options(transformed, tmp_path, data=str(tmp_path / "a.npz"), epochs=1))
    assert math.isfinite(report.training.after[0])


def test_padding_and_prompts_do_not_count(tmp_path):
    base = write_folder(tmp_path / "base")
    lg.transform(base, lg.LaurelConfig(variant="rw"), output=tmp_path / "t")
    rows = [{"prompt": "two and two is ", "completion": word} for word in ("four.", "five or so.") * 8]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chosen = options(tmp_path / "t", tmp_path, data=str(tmp_path / "a.jsonl"), train_on="completions", packed=False)
    report = finetune(chosen)
    assert report.training.after[0] < report.training.before[0]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"max_length": 100}, ConfigError, "more than the 64 tokens"),
        ({"max_length": 1}, ConfigError, "max_length"),
        ({"train_on": "some"}, ConfigError, "all or completions"),
        ({"loss": "mse"}, DataError, "cannot read data of type '.txt'"),
        ({"tuned": "model"}, OutputError, "never written over"),
    ],
)
def test_wrong_options_are_told_before_anything_is_done(tmp_path, changes, error, message):
    base = write_folder(tmp_path / "base")
    lg.transform(base, lg.LaurelConfig(variant="rw"), output=tmp_path / "t")
    if changes.get("tuned") == "model":
        changes = {"tuned": tmp_path / "t"}
    with pytest.raises(error, match=message):
        finetune(options(tmp_path / "t", tmp_path, **changes))


def test_next_tokens_are_the_target_of_causal_lm():
    logits, labels = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    labels[1, 3:] = -100
    total, weight = build_loss("causal_lm", "labels")(logits, {"labels": labels})
    rows = [(n, i) for n in range(2) for i in range(4) if labels[n, i + 1] >= 0]
    wanted = sum(-torch.log_softmax(logits[n, i], -1)[labels[n, i + 1]] for n, i in rows)
    torch.testing.assert_close(total, wanted)
    assert weight == len(rows) == 6
    loss = build_loss("causal_lm", "labels")
    metric = build_metric(None, "causal_lm", loss, "labels")
    found = metric.value(metric.sums(logits, {"labels": labels}))[0]
    assert metric.name == "perplexity" and found == pytest.approx(math.exp(total / weight))
    with pytest.raises(DataError, match="logits"):
        loss(logits[0], {"labels": labels})
