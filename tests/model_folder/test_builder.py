"""Folders as ONNX Runtime GenAI's builder writes them from models of Hugging Face, beside the torch modules."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from folder_models import TEMPLATE, tokenizer_json

import laurel_graph as lg
from laurel_graph.errors import AdapterError

pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 80, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
CONFIG = lg.LaurelConfig(variant="rw+lr", rank=4)
IDS = np.random.default_rng(0).integers(3, 60, (2, 8))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A tiny Llama, and its folders in float32 and in 4 bits."""
    place = tmp_path_factory.mktemp("builder")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    model.save_pretrained(place / "hf")
    (place / "hf" / "tokenizer.json").write_text(tokenizer_json())
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "chat_template": TEMPLATE}
    (place / "hf" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **tokens})
    )
    for precision in ("fp32", "int4"):
        words = ["-i", place / "hf", "-o", place / precision, "-p", precision, "-e", "cpu", "-c", place / "cache"]
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    return place, model


@pytest.fixture(scope="module")
def trained(exported):
    """The module with LAuReL residuals that are no longer where they started, and their adapter."""
    place, model = exported
    report = lg.attach(model, CONFIG, torch.from_numpy(IDS))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lg.trainable_parameters(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    lg.save_adapter(model, place / "torch.safetensors")
    return place, model, [plan.spec.site for plan in report.plans]


def logits(folder):
    session = lg.session(folder / "model.onnx")
    feeds = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
    empty = np.zeros((len(IDS), 2, 0, 16), np.float32)
    feeds |= {value.name: empty for value in session.get_inputs() if value.name.startswith("past")}
    return session.run(["logits"], feeds)[0]


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_sites_are_called_as_in_torch(trained, precision):
    place, _, sites = trained
    assert [residual.site for residual in lg.inspect(place / precision).residuals] == sites


def test_an_adapter_trained_in_torch_gives_its_logits_in_the_folder(trained):
    place, model, _ = trained
    lg.transform(place / "fp32", CONFIG, output=place / "t")
    lg.apply_adapter(place / "t", place / "torch.safetensors", place / "applied")
    with torch.no_grad():
        wanted = model(torch.from_numpy(IDS)).logits.numpy()
    assert np.abs(logits(place / "t") - wanted).max() > 1e-2
    np.testing.assert_allclose(logits(place / "applied"), wanted, atol=1e-5 * np.abs(wanted).max())


def test_an_adapter_of_another_base_is_refused_in_the_folder(trained):
    place, _, _ = trained
    torch.manual_seed(1)
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    lg.attach(other, CONFIG, torch.from_numpy(IDS))
    lg.save_adapter(other, place / "other.safetensors")
    lg.transform(place / "fp32", CONFIG, output=place / "t2")
    with pytest.raises(AdapterError, match="another base"):
        lg.apply_adapter(place / "t2", place / "other.safetensors", place / "wrong")
    assert not (place / "wrong").exists()


def test_an_adapter_trained_in_torch_fits_four_bits_of_its_base(trained):
    place, model, _ = trained
    lg.transform(place / "int4", CONFIG, output=place / "t4")
    lg.apply_adapter(place / "t4", place / "torch.safetensors", place / "applied4")
    with torch.no_grad():
        wanted = model(torch.from_numpy(IDS)).logits.numpy()
    before, after = (np.abs(logits(place / name) - wanted).max() for name in ("t4", "applied4"))
    assert after < before / 2
