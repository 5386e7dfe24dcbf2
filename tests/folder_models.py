"""Tiny folders as ONNX Runtime GenAI's builder writes them: decoders with a cache, weights beside the graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH, HEADS, KV_HEADS, SIZE, LAYERS, LENGTH = 64, 64, 4, 2, 16, 2, 64


class DecoderGraph:
    """Builds a Llama-like decoder as the GenAI builder lays it out."""

    def __init__(
        self, *, int4: bool = False, accuracy: int = 0, window: int = -1, softcap: float = 0.0, seed: int = 0
    ) -> None:
        self.random, self.nodes, self.weights = np.random.default_rng(seed), [], []
        self.int4, self.accuracy, self.window, self.softcap = int4, accuracy, window, softcap

    def weight(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, outputs, outputs[0], domain=domain, **attributes))
        return outputs[0]

    def linear(self, x: str, name: str, rows: int, columns: int) -> str:
        value = (self.random.standard_normal((columns, rows)) / rows**0.5).astype(np.float32)
        if not self.int4:
            return self.add("MatMul", [x, self.weight(f"{name}.weight", value.T.copy())], [f"{name}/out"])
        block = 16
        grouped = value.reshape(columns, rows // block, block)
        scale = np.abs(grouped).max(-1) / 7
        steps = np.clip(np.rint(grouped / scale[..., None]) + 8, 0, 15).astype(np.uint8)
        packed = (steps[..., ::2] | (steps[..., 1::2] << 4)).astype(np.uint8)
        inputs = [x, self.weight(f"{name}.q", packed), self.weight(f"{name}.s", scale.reshape(-1).astype(np.float32))]
        return self.add("MatMulNBits", inputs, [f"{name}/out"], "com.microsoft",
                        K=rows, N=columns, bits=4, block_size=block, accuracy_level=self.accuracy)  # fmt: skip

    def build(self) -> onnx.ModelProto:
        """Returns the model."""
        vector = [numpy_helper.from_array(np.array([1], np.int64), "one")]
        self.add("Gather", [self.weight("embed", self._floats(VOCABULARY, WIDTH)), "input_ids"], ["embedded"])
        self.add("ReduceSum", ["attention_mask", "one"], ["counted"], keepdims=1)
        self.add("Sub", ["counted", "one"], ["counted_less"])
        self.add("Cast", ["counted_less"], ["seqlens_k"], to=TensorProto.INT32)
        self.add("Shape", ["attention_mask"], ["mask_shape"])
        self.add("Gather", ["mask_shape", self.weight("index", np.array(1, np.int64))], ["mask_length"], axis=0)
        self.add("Cast", ["mask_length"], ["total_length"], to=TensorProto.INT32)
        angles = np.outer(np.arange(LENGTH), 10000.0 ** (-np.arange(SIZE // 2) / (SIZE // 2)))
        self.weight("cos_cache", np.cos(angles).astype(np.float32))
        self.weight("sin_cache", np.sin(angles).astype(np.float32))
        norm = self.weight("model.layers.0.input_layernorm.weight", self._scale())
        normed = self.add("SimplifiedLayerNormalization", ["embedded", norm],
                          ["/model/layers.0/input_layernorm/output_0"],
                          axis=-1, epsilon=1e-6, stash_type=1)  # fmt: skip
        stream = "embedded"
        for layer in range(LAYERS):
            stream, normed = self._layer(layer, stream, normed)
        self.linear(normed, "lm_head", WIDTH, VOCABULARY)
        self.nodes[-1].output[0] = "logits"
        graph = helper.make_graph(self.nodes, "main_graph", self._inputs(), self._outputs(), [*self.weights, *vector])
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def _layer(self, layer: int, stream: str, normed: str) -> tuple[str, str]:
        name = f"model.layers.{layer}"
        q = self.linear(normed, f"{name}.attn.q_proj", WIDTH, HEADS * SIZE)
        k = self.linear(normed, f"{name}.attn.k_proj", WIDTH, KV_HEADS * SIZE)
        v = self.linear(normed, f"{name}.attn.v_proj", WIDTH, KV_HEADS * SIZE)
        caches = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        presents = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        more = {"softcap": self.softcap} if self.softcap else {}
        self.add("GroupQueryAttention",
                 [q, k, v, *caches, "seqlens_k", "total_length", "cos_cache", "sin_cache"],
                 [f"{name}.attn/out", *presents], "com.microsoft", num_heads=HEADS, kv_num_heads=KV_HEADS,
                 scale=SIZE**-0.5, do_rotary=1, rotary_interleaved=0, local_window_size=self.window,
                 **more)  # fmt: skip
        attended = self.linear(f"{name}.attn/out", f"{name}.attn.o_proj", WIDTH, WIDTH)
        stream, normed = self._join(stream, attended, f"{name}.post_attention_layernorm", True)
        gate = self.linear(normed, f"{name}.mlp.gate_proj", WIDTH, 2 * WIDTH)
        up = self.linear(normed, f"{name}.mlp.up_proj", WIDTH, 2 * WIDTH)
        sigmoid = self.add("Sigmoid", [gate], [f"{name}.mlp/sigmoid"])
        gated = self.add("Mul", [gate, sigmoid], [f"{name}.mlp/gated"])
        product = self.add("Mul", [gated, up], [f"{name}.mlp/product"])
        down = self.linear(product, f"{name}.mlp.down_proj", 2 * WIDTH, WIDTH)
        last = layer == LAYERS - 1
        norm = "final_norm_layernorm" if last else "input_layernorm"
        return self._join(stream, down, f"model.layers.{layer + 1}.{norm}", not last)

    def _join(self, stream: str, branch: str, norm: str, keep: bool) -> tuple[str, str]:
        scale = self.weight(f"{norm}.weight", self._scale())
        place = "/" + norm.replace(".", "/").replace("layers/", "layers.")
        outputs = [f"{place}/output_0", "", "", f"{place}/output_3"] if keep else [f"{place}/output_0"]
        self.nodes.append(helper.make_node("SkipSimplifiedLayerNormalization", [stream, branch, scale], outputs,
                                           f"{place}/SkipLayerNorm", domain="com.microsoft", epsilon=1e-6))  # fmt: skip
        return (outputs[-1] if keep else ""), outputs[0]

    def _floats(self, *shape: int) -> np.ndarray:
        return self.random.standard_normal(shape).astype(np.float32)

    def _scale(self) -> np.ndarray:
        return (1 + 0.1 * self._floats(WIDTH)).astype(np.float32)

    def _inputs(self) -> list[onnx.ValueInfoProto]:
        ids, mask = ["batch_size", "sequence_length"], ["batch_size", "total_sequence_length"]
        cache = ["batch_size", KV_HEADS, "past_sequence_length", SIZE]
        return [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ids),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, mask),
            *(
                helper.make_tensor_value_info(f"past_key_values.{layer}.{kind}", TensorProto.FLOAT, cache)
                for layer in range(LAYERS)
                for kind in ("key", "value")
            ),
        ]

    def _outputs(self) -> list[onnx.ValueInfoProto]:
        cache = ["batch_size", KV_HEADS, "total_sequence_length", SIZE]
        logits = ["batch_size", "sequence_length", VOCABULARY]
        return [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits),
            *(
                helper.make_tensor_value_info(f"present.{layer}.{kind}", TensorProto.FLOAT, cache)
                for layer in range(LAYERS)
                for kind in ("key", "value")
            ),
        ]


def tokenizer_json() -> str:
    """A tokenizer of words: one token for each letter and a few special ones."""
    letters = " abcdefghijklmnopqrstuvwxyz.,!?<|>/:\n0123456789"
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{letter: i for i, letter in enumerate(letters, 3)}}
    special = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for i, text in enumerate(("<pad>", "<s>", "</s>"))
    ]  # fmt: skip
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary,
             "merges": []}  # fmt: skip
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")
    return json.dumps({"version": "1.0", **dict.fromkeys(parts), "added_tokens": special, "model": model})


TEMPLATE = "{% for m in messages %}{{ '<s>' + m['role'] + ':' + m['content'] + '</s>' }}{% endfor %}"


def write_folder(folder: Path, **options: object) -> Path:
    """Writes a GenAI-like folder and returns it."""
    folder.mkdir(parents=True)
    model = DecoderGraph(**options).build()
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=64)
    config = {
        "model": {
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "context_length": LENGTH, "type": "llama",
            "vocab_size": VOCABULARY,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx", "head_size": SIZE, "hidden_size": WIDTH,
                "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "num_key_value_heads": KV_HEADS,
                "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask",
                           "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"},
                "outputs": {"logits": "logits", "present_key_names": "present.%d.key",
                            "present_value_names": "present.%d.value"},
            },
        },
        "search": {"do_sample": False, "max_length": LENGTH, "past_present_share_buffer": False},
    }  # fmt: skip
    (folder / "genai_config.json").write_text(json.dumps(config, indent=4))
    (folder / "tokenizer.json").write_text(tokenizer_json())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
                    "pad_token": "<pad>", "chat_template": TEMPLATE})
    )  # fmt: skip
    return folder
