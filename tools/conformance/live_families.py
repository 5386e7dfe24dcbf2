"""Tiny random models of the families of transformers that :mod:`.live_habits` tries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
T5 = {"vocab_size": 64, "d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8}
PAIR = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
WHISPER = {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 64, "suppress_tokens": [],
           "begin_suppress_tokens": []}  # fmt: skip
WAVE = {"conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "vocab_size": 32, "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "mask_time_prob": 0.0,
        "layerdrop": 0.0, "apply_spec_augment": False}  # fmt: skip
IMAGE = {"image_size": 32, "patch_size": 8, "num_labels": 3, "hidden_dropout_prob": 0.1}


@dataclass(frozen=True)
class Family:
    """How to make and call one kind of model.

    Attributes:
        model: name of the model's class.
        config: name of the config's class, and its values.
        kind: ``causal``, ``seq2seq``, ``encoder``, ``image``, ``speech`` (encoder and decoder) or ``wave``.
    """

    model: str
    config: str
    values: dict[str, Any]
    kind: str

    def build(self) -> Any:
        """Returns a new model with random weights."""
        import transformers

        quiet: Any = transformers.logging.set_verbosity_error
        quiet()
        return getattr(transformers, self.model)(getattr(transformers, self.config)(**self.values))

    def inputs(self, rows: int = 2, length: int = 7) -> dict[str, torch.Tensor]:
        """Example inputs by name."""
        generator = torch.Generator().manual_seed(rows * 100 + length)
        ids = torch.randint(5, 60, (rows, length), generator=generator)
        made: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
            "causal": lambda: {"input_ids": ids},
            "encoder": lambda: {"input_ids": ids},
            "seq2seq": lambda: {"input_ids": ids, "decoder_input_ids": ids[:, :5]},
            "image": lambda: {"pixel_values": torch.randn(rows, 3, 32, 32, generator=generator)},
            "speech": lambda: {
                "input_features": torch.randn(rows, 8, 32, generator=generator),
                "decoder_input_ids": ids[:, :5],
            },
            "wave": lambda: {"input_values": torch.randn(rows, 100 * length, generator=generator)},
        }
        return made[self.kind]()

    def longer(self) -> dict[str, torch.Tensor]:
        """Inputs of another batch size, and length where the family has one."""
        return self.inputs(3, 11)

    def labelled(self) -> dict[str, torch.Tensor]:
        """Inputs with labels, as a training step gets them."""
        named = {key: value for key, value in self.inputs().items() if key != "decoder_input_ids"}
        if self.kind in ("encoder", "image"):
            return {**named, "labels": torch.tensor([0, 1])}
        labels = Family(self.model, self.config, self.values, "causal").inputs()["input_ids"]
        return {**named, "labels": labels.clamp(max=31)[:, :4] if self.kind == "wave" else labels}

    def prompt(self) -> dict[str, torch.Tensor]:
        """What ``generate`` gets: token ids with left padding; nothing where the family generates nothing."""
        if self.kind in ("encoder", "image", "wave"):
            return {}
        named = {key: value for key, value in self.inputs().items() if key != "decoder_input_ids"}
        if "input_ids" in named:
            mask = torch.ones_like(named["input_ids"])
            mask[0, :3] = 0
            named["attention_mask"] = mask
        return named


FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM", "LlamaConfig", {**SIZES, "num_key_value_heads": 2, "attention_dropout": 0.1}, "causal"
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "causal",
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        "Qwen3Config",
        {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "attention_dropout": 0.1},
        "causal",
    ),
    "t5": Family("T5ForConditionalGeneration", "T5Config", {**T5, "decoder_start_token_id": 0}, "seq2seq"),
    "bart": Family(
        "BartForConditionalGeneration", "BartConfig", {**PAIR, "max_position_embeddings": 64}, "seq2seq"
    ),
    "bert": Family("BertForSequenceClassification", "BertConfig", {**SIZES, "num_labels": 3}, "encoder"),
    "vit": Family(
        "ViTForImageClassification",
        "ViTConfig",
        {**{key: value for key, value in SIZES.items() if key != "vocab_size"}, **IMAGE},
        "image",
    ),
    "whisper": Family(
        "WhisperForConditionalGeneration", "WhisperConfig", {**PAIR, **WHISPER, "dropout": 0.1}, "speech"
    ),
    "wav2vec2": Family("Wav2Vec2ForCTC", "Wav2Vec2Config", WAVE, "wave"),
    "mixtral": Family(
        "MixtralForCausalLM",
        "MixtralConfig",
        {
            **SIZES,
            "num_key_value_heads": 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "attention_dropout": 0.1,
        },
        "causal",
    ),
    "gpt-oss": Family(
        "GptOssForCausalLM",
        "GptOssConfig",
        {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
         "sliding_window": 4, "attention_dropout": 0.1, "pad_token_id": 0},
        "causal",
    ),
}  # fmt: skip
"""Name to family."""
