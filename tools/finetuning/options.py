"""The options of ``laurel finetune``, light to import: the command line makes its flags from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from laurel_graph.errors import ConfigError

from .train_options import TrainOptions

if TYPE_CHECKING:
    from onnx import ModelProto

EXISTING = "existing"
"""Among what is to train: the weights of LAuReL blocks that the model has of its own."""

ADAPTER_SUFFIXES = (".safetensors", ".onnx_adapter")
TRAINED_ON = ("all", "completions")


def numbers(name: str, text: str | None) -> tuple[float, ...]:
    """Returns the numbers of ``0.485,0.456,0.406``; none for ``None``.

    Raises:
        ConfigError: it says something else.
    """
    try:
        found = tuple(float(part) for part in text.split(",")) if text is not None else ()
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise ConfigError(f"{name} = {text!r} is not valid: expected a number, or numbers with commas between them.")
    return found


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TrainOptions):
    """What ``laurel finetune`` is asked for beside how to train; each field is a flag.

    Attributes:
        model: a transformed ``.onnx`` file or model folder.
        data: training data: ``.npz``, ``.parquet``, ``.csv``, a folder (of arrays, of images as ``CLASS/*.png``, of
            Hugging Face's datasets) or ``package.module:function``; arrays are named after the model's inputs, plus
            the target; the columns of a ``.csv`` beside the target are one input. Arrays ``NAME`` and ``NAME.2`` are
            the two sides of a pair. With the loss ``causal_lm`` also text: ``.txt``, or ``.jsonl`` and ``.parquet``
            with ``text``, with ``prompt`` and ``completion``, or with ``messages``.
        tuned: the ``.onnx`` file or folder to write; by default beside ``model``, ending in ``.tuned.onnx`` or
            ``.tuned``.
        adapter: the file to write with the LAuReL tensors alone, ``.safetensors`` or ONNX Runtime's own format,
            ``.onnx_adapter``; by default none.
        validation: data for the metric in one of the same forms, or a share of the training data such as ``0.2``.
        loss: ``cross_entropy``, ``causal_lm`` (the next token of a language model), ``mse``, ``l1``, ``bce``,
            ``cosine``, ``distill`` or ``package.module:function``.
        metric: ``accuracy``, ``pearson``, ``perplexity``, ``loss`` or ``package.module:function``; by default what
            suits the loss. It goes with ``validation``, and so does ``patience``.
        target: name of the target's array or column; by default the only one that is no input, of a ``.csv`` the only
            one with words.
        scale: what bytes (uint8) in the inputs are divided by: 255 for a model of images from 0 to 1.
        mean: what is subtracted then, a number or one for each channel such as ``0.485,0.456,0.406``.
        std: what that is divided by, likewise.
        output: the output, or any other value of the graph, to train on; by default the only output.
        teacher: the model whose outputs ``distill`` aims at; by default the model without its LAuReL residuals.
        head: put a new linear classifier of so many classes on ``output`` (by default on what enters the last linear
            layer) and train it too.
        train: names or globs of further initializers to train; ``existing`` stands for the weights of LAuReL blocks
            that the model has of its own (Gemma 3n).
        tokenizer: the folder with ``tokenizer.json`` for text; by default the model's.
        max_length: tokens of a sample of text; by default 512, or what the model can see if that is less.
        packed: whether texts follow each other in one stream that is cut into samples; by default all but
            conversations do.
        train_on: ``all`` of a text, or ``completions`` and answers alone.
        checkpoint: file of the run's state; by default ``TUNED.checkpoint``. It is deleted when the run is done.
    """

    model: Path
    data: str
    tuned: Path = Path()
    adapter: Path | None = None
    validation: str | None = None
    loss: str = "cross_entropy"
    metric: str | None = None
    target: str | None = None
    scale: float | None = None
    mean: str | None = None
    std: str | None = None
    output: str | None = None
    teacher: Path | None = None
    head: int | None = None
    train: tuple[str, ...] = ()
    tokenizer: Path | None = None
    max_length: int | None = None
    packed: bool | None = None
    train_on: str = "all"

    def __post_init__(self) -> None:
        for name in ("model", "tuned", "adapter", "teacher", "tokenizer", "checkpoint", "tensorboard"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
        if self.tuned == Path():
            beside = self.model.with_name(f"{self.model.resolve().name}.tuned")
            tuned = beside if self.model.is_dir() else self.model.with_suffix(".tuned.onnx")
            object.__setattr__(self, "tuned", tuned)
        if self.checkpoint is None:
            object.__setattr__(self, "checkpoint", self.tuned.with_name(f"{self.tuned.name}.checkpoint"))
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(f"max_length = {self.max_length!r} is not valid: expected at least 2 tokens.")
        if self.train_on not in TRAINED_ON:
            raise ConfigError(f"train_on = {self.train_on!r} is not valid: expected {' or '.join(TRAINED_ON)}.")
        if self.head is not None and self.head < 1:
            raise ConfigError(f"head = {self.head!r} is not valid: expected a number of classes of at least 1.")
        if self.scale is None and (self.mean or self.std):
            raise ConfigError("mean and std go with scale, what bytes are divided by first: give --scale 255, or 1.")
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"scale = {self.scale!r} is not valid: expected a number above 0, as a rule 255.")
        numbers("mean", self.mean)
        if self.std is not None and min(numbers("std", self.std)) <= 0:
            raise ConfigError(f"std = {self.std!r} is not valid: expected numbers above 0.")
        if self.teacher is not None and self.loss != "distill":
            raise ConfigError(f"teacher goes with the loss distill, found loss = {self.loss!r}.")
        for name in ("metric", "patience"):
            if self.validation is None and getattr(self, name) is not None:
                raise ConfigError(f"{name} needs data to measure on: give --validation, a file or a share such as 0.2.")
        if self.adapter is not None and self.adapter.suffix not in ADAPTER_SUFFIXES:
            expected = f"a file ending in {' or '.join(ADAPTER_SUFFIXES)}"
            raise ConfigError(f"adapter = {str(self.adapter)!r} is not valid: expected {expected}.")
        if self.checkpoint in (self.tuned, self.adapter, self.model):
            raise ConfigError(
                f"checkpoint = {str(self.checkpoint)!r} is another file of this run: choose another name."
            )
        super().__post_init__()


def with_existing(options: FinetuneOptions, model: ModelProto) -> FinetuneOptions:
    """Names the weights that ``existing`` among those to train stands for; a tensor of that very name goes first.

    Raises:
        ConfigError: the model has no LAuReL block of its own.
    """
    if EXISTING not in options.train or any(tensor.name == EXISTING for tensor in model.graph.initializer):
        return options
    from laurel_graph.passes.detect.existing import existing_blocks
    from laurel_graph.passes.rewrite.placing import detect_onnx

    names = [name for weights in existing_blocks(detect_onnx(model)).values() for name in weights]
    if not names:
        raise ConfigError(
            f"--train {EXISTING}: {options.model} has no LAuReL block of its own, n + norm((n·Wl)·Wr) as in Gemma 3n; "
            "`laurel inspect` lists those that a file has as laurel. Run `laurel transform` to put some in."
        )
    others = [name for name in options.train if name != EXISTING]
    return replace(options, train=tuple(dict.fromkeys((*others, *map(escape, names)))))
