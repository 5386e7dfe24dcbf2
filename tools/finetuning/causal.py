"""What a decoder takes beside its tokens, and which of its outputs are the logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from laurel_graph.errors import ConfigError, DataError, ModelError
from laurel_graph.model_folder import is_folder, layout_of
from laurel_graph.samples import Sampler

from .data import Data, InputSpec
from .data_files import read_data
from .losses import IGNORED
from .text import LENGTH, TextOptions, is_text, read_text

if TYPE_CHECKING:
    from onnx import ModelProto

    from .options import FinetuneOptions

Array = NDArray[Any]
LABELS = "labels"
TOKENS, MASK, POSITIONS = "input_ids", "attention_mask", "position_ids"


def read_tokens(source: str, options: FinetuneOptions, model: ModelProto, inputs: Sequence[InputSpec]) -> Data:
    """Reads text, or arrays of tokens, as data for a decoder; what follows from the tokens is added to them.

    Args:
        source: the data.
        options: what the run is asked for: how text is cut, whose tokenizer is taken.
        model: the decoder.
        inputs: what it takes.

    Raises:
        ConfigError: samples of text that are longer than what the model can see.
        DataError: see :func:`~.text.read_text`, :func:`~.data.read_data` and :func:`with_decoder_inputs`.
    """
    if is_text(source):
        seen = context_length(options.model)
        length = options.max_length or min(LENGTH, seen or LENGTH)
        if seen is not None and length > seen:
            raise ConfigError(f"max_length = {length} is more than the {seen} tokens that the model can see.")
        folder = options.tokenizer or (options.model if is_folder(options.model) else options.model.parent)
        text = TextOptions(folder, length, options.packed, options.train_on == "completions")
        return Data(with_decoder_inputs(read_text(source, text), model, inputs, source), source)
    data = read_data(source)
    arrays = {name: array for name in data.names if (array := data.values(name)) is not None}
    if len(arrays) < len(data.names):  # samples are made one by one: with all that the model takes
        return data
    return Data(with_decoder_inputs(arrays, model, inputs, source), source)


def is_cache(name: str) -> bool:
    """Whether an input of a decoder holds what it has met, by its name."""
    return "past" in name.lower() or "cache" in name.lower()


def context_length(model: Path) -> int | None:
    """Returns how many tokens a folder says that its model can see, or ``None``."""
    if not is_folder(model):
        return None
    found = layout_of(model).config.get("model", {}).get("context_length")
    return found if isinstance(found, int) and found > 1 else None


def with_decoder_inputs(
    arrays: Mapping[str, Array], model: ModelProto, inputs: Sequence[InputSpec], source: str
) -> dict[str, Array]:
    """Returns *arrays* with the inputs that follow from the tokens: mask, positions, and caches that hold nothing.

    Args:
        arrays: ``input_ids`` ``(N, L)`` and what else the data holds.
        model: the decoder.
        inputs: what it takes.
        source: where the arrays come from, for messages.

    Raises:
        DataError: there are no tokens, or the decoder takes something else.
    """
    found = dict(arrays)
    names = [spec.name for spec in inputs]
    if TOKENS not in found or found[TOKENS].ndim != 2:
        raise DataError(f"{source}: causal_lm needs {TOKENS!r} of shape (N, L); it holds {', '.join(found)}.")
    count, length = found[TOKENS].shape
    mask = found.setdefault(MASK, np.ones((count, length), np.int64)).astype(np.int64)
    if LABELS not in found:
        found[LABELS] = np.where(mask > 0, found[TOKENS], IGNORED)
    if POSITIONS in names:
        found.setdefault(POSITIONS, np.broadcast_to(np.arange(length), (count, length)))
    caches = [name for name in names if name not in found and is_cache(name)]
    if caches:
        sampler = Sampler(model)
        drawn = sampler.draw(sampler.situation("prompt" if "prompt" in sampler.kinds else sampler.kinds[0]))
        for name in caches:
            shape = drawn[name].shape
            found[name] = np.broadcast_to(np.zeros((), drawn[name].dtype), (count, *shape[1:]))
    if missing := [name for name in names if name not in found]:
        raise DataError(
            f"{source}: the model takes {missing[0]!r} too, which does not follow from the tokens; give all inputs as "
            "arrays (.npz)."
        )
    if MASK not in names:
        del found[MASK]
    return found


def logits_of(model: ModelProto) -> str:
    """Returns the output that holds the logits: the one of that name, or the only one that is no cache.

    Raises:
        ModelError: there are several.
    """
    outputs = [str(info.name) for info in model.graph.output]
    if "logits" in outputs:
        return "logits"
    others = [name for name in outputs if not is_cache(name) and "present" not in name.lower()]
    if len(others) != 1:
        raise ModelError(f"which output holds the logits cannot be told; choose one of {', '.join(outputs)} (--value).")
    return others[0]
