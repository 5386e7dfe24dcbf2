"""Folders that ONNX Runtime GenAI's builder makes of tiny random language models, taken all the way to generation.

``python -m laurel_graph.tools.conformance.genai_families [--only GLOB] [--precision int4 ...] [--keep FOLDER]``

Each family and precision is built, transformed, moved away from its start, deployed as fused operators and as plain
nodes, and verified by itself; then ``onnxruntime_genai`` generates with each folder. One row says how many sites there
are, how many each comparison compared, and how many of the generated tokens are those of the tuned folder; the column
``itself`` says how many are where ONNX Runtime does not optimise that folder. Needs transformers, onnxruntime-genai and
what its builder needs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime

import laurel_graph as lg
from laurel_graph.errors import LaurelError
from laurel_graph.tools.console import note, print_json, print_table
from laurel_graph.tools.zoo.detection import is_wanted, one_line

SIZES = {
    "vocab_size": 80, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "ministral": ("MinistralConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
    "qwen3-moe": ("Qwen3MoeConfig", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    "phi": ("PhiConfig", {"hidden_size": 128, "head_dim": 32, "num_key_value_heads": 4}),
    "phi3": ("Phi3Config", {"original_max_position_embeddings": 128}),
    "phi-moe": ("PhimoeConfig", EXPERTS),
    "gemma": ("GemmaConfig", {}),
    "gemma2": ("Gemma2Config", {"query_pre_attn_scalar": 16, "sliding_window": 8}),
    "gemma3": ("Gemma3TextConfig", {"query_pre_attn_scalar": 16, "sliding_window": 8}),
    "olmo": ("OlmoConfig", {}),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": ("Olmo3Config", {"sliding_window": 8}),
    "granite": (
        "GraniteConfig",
        {
            "residual_multiplier": 0.22,
            "embedding_multiplier": 12.0,
            "logits_scaling": 8.0,
            "attention_multiplier": 0.25,
        },
    ),
    "granite-moe": ("GraniteMoeConfig", EXPERTS),
    "smollm3": ("SmolLM3Config", {}),
    "gpt-oss": ("GptOssConfig", {**EXPERTS, "sliding_window": 8, "intermediate_size": 64}),
    "ernie": ("Ernie4_5Config", {}),
    "nemotron": ("NemotronConfig", {"hidden_size": 128, "head_dim": 32}),
    "hunyuan": ("HunYuanDenseV1Config", {}),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}),
}
"""Family to its config's class and the values that differ from :data:`SIZES`."""
PRECISIONS = ("fp32", "fp16", "int4")
TOKENS = 32
PROMPT = "hello world"
COLUMNS = ("model", "sites", "deployed", "portable", "verified", "tokens", "portable tokens", "itself")


class NotBuilt(Exception):
    """The builder makes no such folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 1 if a folder that was built fails anywhere."""
    parser = argparse.ArgumentParser(prog="genai_families", description="GenAI folders, all the way to generation.")
    parser.add_argument("--only", default="*", help="families, as globs")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--variant", default="rw+lr")
    parser.add_argument("--keep", type=Path, help="folder for what is written; else it goes away")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--generate", nargs=2, metavar=("FOLDER", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.generate:
        sys.stdout.write(json.dumps(_generated(options.generate[0], int(options.generate[1]))))
        return 0
    warnings.simplefilter("ignore")
    onnxruntime.set_default_logger_severity(4)
    rows, failed = [], 0
    with TemporaryDirectory(prefix="laurel-genai-") as name:
        place = options.keep or Path(name)
        place.mkdir(parents=True, exist_ok=True)
        for family in FAMILIES:
            if not is_wanted(family, options.only):
                continue
            for precision in options.precision:
                row = {"model": f"{family} {precision}"}
                try:
                    row |= take_through(place, family, precision, options.variant)
                except NotBuilt as error:
                    row["sites"] = f"not built: {one_line(error)}"
                except LaurelError as error:
                    row["sites"] = f"FAILED: {one_line(error)}"
                failed += "FAILED" in row["sites"] or "no" in row.values()
                rows.append(row)
                note("  ".join(f"{key} {value}" for key, value in row.items()))
    if options.json:
        print_json({"rows": rows})
    else:
        print_table("GenAI folders", COLUMNS, [tuple(row.get(key, "") for key in COLUMNS) for row in rows])
    return int(failed > 0)


def take_through(place: Path, family: str, precision: str, variant: str) -> dict[str, str]:
    """Builds one folder and takes it all the way; returns its row.

    Raises:
        NotBuilt: the builder refuses the family or the precision.
        LaurelError: one of the commands refuses the folder.
    """
    base = _built(place, family, precision)
    tuned, deployed, portable = (base.with_name(f"{base.name}-{word}") for word in ("tuned", "deployed", "portable"))
    for old in (tuned, deployed, portable):
        shutil.rmtree(old, ignore_errors=True)
    sites = len(lg.inspect(base).residuals)
    lg.transform(base, lg.LaurelConfig(variant=variant, rank=4, weights="free"), output=tuned)
    _move(tuned)
    served = lg.deploy(tuned, deployed)
    plain = lg.deploy(tuned, portable, portable=True)
    verified = lg.verify(tuned, deployed)
    row = {
        "sites": str(sites),
        "deployed": _compared(served.verification, sites),
        "portable": _compared(plain.verification, sites),
        "verified": _compared(verified, sites),
    }
    if isinstance(said := _tokens(base), str):
        return {**row, "tokens": f"the base does not run: {said[:40]}"}
    wanted = _tokens(tuned)
    optimised = tuned.with_name(f"{tuned.name}-off")
    shutil.rmtree(optimised, ignore_errors=True)
    shutil.copytree(tuned, optimised)
    _switch_optimisation_off(optimised)
    return {
        **row,
        "tokens": _same(_tokens(deployed), wanted),
        "portable tokens": _same(_tokens(portable), wanted),
        "itself": _same(_tokens(optimised), wanted),
    }


def _built(place: Path, family: str, precision: str) -> Path:
    """The folder of one family in one precision, built if it is not there.

    Raises:
        NotBuilt: the builder refuses it.
    """
    import torch
    import transformers

    source, folder = place / family, place / f"{family}-{precision}"
    if folder.exists():
        return folder
    kind, values = FAMILIES[family]
    if not source.exists():
        if not hasattr(transformers, kind):
            raise NotBuilt(f"this transformers has no {kind}")
        torch.manual_seed(0)
        config = getattr(transformers, kind)(**{**SIZES, **values})
        builder: Any = transformers.AutoModelForCausalLM
        model = builder.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                noise = 0.1 * torch.randn_like(parameter)
                parameter.copy_(noise if parameter.dim() > 1 else 1 + noise)
        model.save_pretrained(source)
        _write_tokenizer(source)
    words = ["-i", source, "-o", folder, "-p", precision, "-e", "cpu", "-c", place / "cache"]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        lines = done.stderr.strip().splitlines()
        raise NotBuilt(lines[-1] if lines else f"the builder ends with {done.returncode}")
    return folder


def _write_tokenizer(folder: Path) -> None:
    """A tokenizer of letters."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import BPE

    special = ("<pad>", "<s>", "</s>")
    letters = " abcdefghijklmnopqrstuvwxyz.,!?<|>/:\n0123456789"
    tokenizer = Tokenizer(BPE({word: i for i, word in enumerate((*special, *letters))}, []))
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast"}
    named |= {f"{word}_token": text for word, text in zip(("pad", "bos", "eos"), special, strict=True)}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def _move(folder: Path) -> None:
    """Moves the LAuReL tensors of a folder away from where they start, as training does."""
    import numpy as np
    import onnx

    from laurel_graph.model_folder import graph_path
    from laurel_graph.onnx_model.tensors import array_of, set_tensors

    path = graph_path(folder)
    model = onnx.load(path, load_external_data=False)
    rng = np.random.default_rng(0)
    ours = [tensor for tensor in model.graph.initializer if tensor.name.startswith("laurel.")]
    moved = {tensor.name: array_of(tensor, path.parent) for tensor in ours}
    moved = {name: array + 0.05 * rng.standard_normal(array.shape) for name, array in moved.items()}
    set_tensors(model, moved)
    onnx.save(model, path)


def _switch_optimisation_off(folder: Path) -> None:
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"].setdefault("session_options", {})["graph_optimization_level"] = "ORT_DISABLE_ALL"
    path.write_text(json.dumps(config))


def _tokens(folder: Path) -> list[int] | str:
    """What the folder generates, in a process of its own; a sentence where it does not."""
    command = [sys.executable, "-m", __spec__.name, "--generate", str(folder), str(TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"ends with {done.returncode}"
    return list(json.loads(done.stdout))


def _generated(folder: str, count: int) -> list[int]:
    import onnxruntime_genai as og

    model = og.Model(folder)
    ids = og.Tokenizer(model).encode(PROMPT)
    options = og.GeneratorParams(model)
    options.set_search_options(max_length=len(ids) + count, min_length=len(ids) + count, do_sample=False)
    generator = og.Generator(model, options)
    generator.append_tokens(ids)
    made: list[int] = []
    while len(made) < count and not generator.is_done():
        generator.generate_next_token()
        made.append(int(generator.get_next_tokens()[0]))
    return made


def _compared(report: lg.VerifyReport | None, sites: int) -> str:
    if not report:
        return "no"
    return f"{len({difference.site for difference in report.sites if difference.site})} of {sites}"


def _same(found: list[int] | str, wanted: list[int] | str) -> str:
    for said in (wanted, found):
        if isinstance(said, str):
            return f"not run: {said[:60]}"
    return f"{sum(a == b for a, b in zip(found, wanted, strict=False))} of {len(wanted)}"


if __name__ == "__main__":
    sys.exit(main())
