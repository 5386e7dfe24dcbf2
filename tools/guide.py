"""The next commands for a model, with its own names and sizes in them, and an example of the data that it trains on."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from laurel_graph import onnx_file
from laurel_graph.errors import ConfigError, DataError, ModelError, near
from laurel_graph.model_folder import folder_files, graph_path, is_folder
from laurel_graph.opset.recover import is_deployed
from laurel_graph.opset.schema import read_specs
from laurel_graph.outputs import check_outputs, write
from laurel_graph.outputs.models import model_files
from laurel_graph.passes.deploy.untrained import is_untrained
from laurel_graph.passes.pipeline import inspect
from laurel_graph.passes.verify.drawing import runnable
from laurel_graph.passes.verify.probe import Runner

from .finetuning.causal import is_cache
from .finetuning.data import Data, InputSpec, fit_to_inputs
from .finetuning.onnx_task import batch_inside, fixed_batch, input_specs

TOKENIZER = "tokenizer.json"
TARGETS = {"cross_entropy": "label", "mse": "target"}
"""Loss to what the template calls its target."""


@dataclass(frozen=True)
class Guide:
    """What can be done with a model next.

    Attributes:
        model: the file or folder.
        state: ``plain``, ``transformed`` (still at its start), ``trained`` or ``deployed``.
        residuals: how many residual connections it has, rewritten ones among them.
        inputs: name to type and shape, as text.
        outputs: likewise.
        data: what the data should look like, line by line; empty where nothing is left to train.
        commands: what each is for, and the command.
    """

    model: str
    state: str
    residuals: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    data: tuple[str, ...]
    commands: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form of ``laurel guide --json``."""
        return {**asdict(self), "commands": [{"what": what, "command": command} for what, command in self.commands]}


@dataclass(frozen=True)
class _Aim:
    """What a model would be trained on: a loss, the value that it is applied to, and its shape."""

    loss: str
    value: str
    shape: tuple[int | str | None, ...] | None
    is_only: bool


def guide(model: str | Path) -> Guide:
    """Returns the next commands for an ONNX file or a model folder.

    Raises:
        ModelError: it cannot be read.
    """
    path = graph_path(model)
    proto = onnx_file.read_with_records(path)
    state = _state(proto, path.parent)
    inputs, aim = input_specs(proto), _aim(proto, model)
    outputs = {info.name: _described(_shape(info), _dtype(info)) for info in proto.graph.output}
    return Guide(
        str(model),
        state,
        len(inspect(proto).residuals),
        {spec.name: _described(spec.shape, str(spec.dtype)) for spec in inputs},
        outputs,
        () if state in ("trained", "deployed") else _data_lines(model, inputs, aim),
        tuple(_commands(Path(model), state, aim)),
    )


def _state(proto: ModelProto, folder: Path) -> str:
    if is_deployed(proto):
        return "deployed"
    if not read_specs(proto):
        return "plain"
    return "transformed" if is_untrained(proto, folder) else "trained"


def _shape(info: Any) -> tuple[int | str | None, ...] | None:
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim)


def _dtype(info: Any) -> str:
    import onnx

    kind = info.type.tensor_type.elem_type
    return str(onnx.helper.tensor_dtype_to_np_dtype(kind)) if kind else "?"


def _described(shape: Sequence[int | str | None] | None, dtype: str) -> str:
    sizes = "?" if shape is None else ", ".join("?" if dim is None else str(dim) for dim in shape)
    return f"{dtype} ({sizes})"


def _aim(proto: ModelProto, model: str | Path) -> _Aim:
    """Guesses the loss by the shape of what comes out: a vector of scores for each sample is taken for classes."""
    outputs = [info for info in proto.graph.output if not is_cache(info.name) and "present" not in info.name.lower()]
    chosen = next((info for info in outputs if info.name == "logits"), (outputs or list(proto.graph.output))[0])
    shape = _shape(chosen)
    loss = "mse"
    if is_folder(model) and (Path(model) / TOKENIZER).is_file() and chosen.name == "logits":
        loss = "causal_lm"
    elif shape is not None and len(shape) == 2 and shape[1] != 1:
        loss = "cross_entropy"
    return _Aim(loss, chosen.name, shape, len(proto.graph.output) == 1)


def _data_lines(model: str | Path, inputs: Sequence[InputSpec], aim: _Aim) -> tuple[str, ...]:
    if aim.loss == "causal_lm":
        return (
            "text: a .txt file, or .jsonl or .parquet with text, with prompt and completion, or with messages;",
            f"the folder's own {TOKENIZER} makes tokens of it.",
        )
    lines = ["an .npz with one array for each input and one for the target; the first axis counts the samples:"]
    lines += [f"  {spec.name}: {_described(_samples(spec.shape), str(spec.dtype))}" for spec in inputs]
    if aim.loss == "cross_entropy":
        classes = aim.shape[1] if aim.shape else None
        last = f"0 to {classes - 1}" if isinstance(classes, int) else "from 0"
        lines.append(f"  {TARGETS[aim.loss]}: int64 (N), class numbers {last}")
    else:
        lines.append(f"  {TARGETS[aim.loss]}: {_described(_samples(aim.shape), 'float32')}, as {aim.value} should be")
    size = fixed_batch(inputs) if all(spec.shape != () for spec in inputs) else None
    if size is not None:
        lines.append(f"  The file takes {size} samples at a time; finetune cuts the data into such pieces.")
    lines.append(f"`laurel data-template {shlex.quote(str(model))} -o data.npz` writes an example.")
    return tuple(lines)


def _samples(shape: Sequence[int | str | None] | None) -> tuple[int | str | None, ...] | None:
    return None if shape is None else ("N", *shape[1:]) if shape else ()


def _commands(model: Path, state: str, aim: _Aim) -> list[tuple[str, str]]:
    ending = "" if is_folder(model) else ".onnx"
    stem = model.name.removesuffix(".onnx")
    for mark in (".laurel", ".tuned", ".served"):
        stem = stem.removesuffix(mark)
    here, plain = (model, model) if state == "plain" else (model, model.with_name(f"{stem}{ending}"))
    transformed = here if state == "transformed" else model.with_name(f"{stem}.laurel{ending}")
    tuned = here if state == "trained" else model.with_name(f"{stem}.tuned{ending}")
    served = here if state == "deployed" else model.with_name(f"{stem}.served{ending}")
    data = "notes.txt" if aim.loss == "causal_lm" else "data.npz"
    value = () if aim.is_only or aim.loss == "causal_lm" else ("--value", aim.value)
    adapter = model.with_name(f"{stem}.safetensors")
    training = ("--data", data, "--validation", "0.2", "--loss", aim.loss, *value)
    every = {
        "plain": [
            ("see what would be rewritten", ("inspect", here)),
            ("put LAuReL in; same bits at the start", ("transform", here, "-o", transformed, "--variant", "rw+lr")),
            ("or try variants first", ("sweep", here, *training, "--variants", "rw,lr,rw+lr")),
        ],
        "transformed": [("train it", ("finetune", transformed, *training, "-o", tuned, "--adapter", adapter))],
        "trained": [
            ("see what was learned", ("report", tuned)),
            ("fold and fuse for serving", ("deploy", tuned, "-o", served)),
        ],
        "deployed": [
            ("hold it against the trained file", ("verify", tuned, served)),
            ("measure it against the original", ("bench", served, "--against", plain)),
        ],
    }
    there, commands = {here}, []
    for what, words in (each for name in list(every)[list(every).index(state) :] for each in every[name]):
        typed = [str(word) for word in words]
        made = {words[i + 1] for i, word in enumerate(words) if word in ("-o", "--adapter")}
        read = {word for word in words if isinstance(word, Path)} - made
        itself = "--against" in words and state != "plain" and plain == here
        if all(path in there or path.exists() for path in read) and not itself:
            commands.append((what, shlex.join(["laurel", *typed])))
            there |= made
    return commands


def write_template(
    model: str | Path, output: str | Path, *, samples: int = 8, loss: str | None = None, seed: int = 0
) -> dict[str, NDArray[Any]]:
    """Writes an ``.npz`` with arrays that the model takes and a target that the loss takes, and returns them.

    The numbers are drawn at random: they show names, types and shapes, and teach nothing.

    Args:
        model: an ONNX file or a model folder.
        output: the ``.npz`` file.
        samples: how many samples.
        loss: ``cross_entropy`` or ``mse``; by default what :func:`guide` names.
        seed: seed of the draw.

    Raises:
        ModelError: the model cannot be read, or runs on nothing that is drawn.
        ConfigError: a number of samples below 1, or a loss whose data is no ``.npz``.
        OutputError: *output* cannot be written.
    """
    path = graph_path(model)
    proto = onnx_file.read(path)
    read = (*model_files(path, proto), *folder_files(model))
    check_outputs(output, inputs=read)
    if samples < 1:
        raise ConfigError(f"samples = {samples!r} is not valid: expected an integer of at least 1.")
    aim = _aim(proto, model)
    loss = loss or aim.loss
    if loss == "causal_lm":
        raise ConfigError(
            f"{model} is a language model, which trains on text: give finetune a .txt file, or .jsonl with text."
        )
    if loss not in TARGETS:
        raise ConfigError(f"loss = {loss!r} is not valid: expected one of {', '.join(TARGETS)}.{near(loss, TARGETS)}")
    arrays = _drawn(path, proto, samples, seed)
    arrays[_free(TARGETS[loss], arrays)] = _target(path, arrays, aim, loss, samples, seed)
    inputs = input_specs(proto)
    fit_to_inputs(Data(arrays, str(output)), inputs)  # what finetune will do with it

    def save(aside: Path) -> None:
        with aside.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    write(output, save, read)
    return arrays


def _drawn(path: Path, proto: ModelProto, samples: int, seed: int) -> dict[str, NDArray[Any]]:
    """Returns drawn inputs of so many samples: of a file with a fixed batch several draws, one behind the other."""
    runner, inputs = Runner(path, None, True), input_specs(proto)
    size = _piece(path, proto)
    parts: list[Mapping[str, NDArray[Any]]] = []
    while sum(len(next(iter(part.values()))) for part in parts) < samples:
        parts.append(runnable(proto, runner.run, batch=size or samples, seed=seed + len(parts), sizes=None))
        if short := [name for name, array in parts[-1].items() if array.ndim == 0 or not len(array)]:
            raise DataError(f"input {short[0]!r} is a single number, or empty; its samples cannot be told apart.")
    names = [spec.name for spec in inputs]
    return {name: np.concatenate([part[name] for part in parts])[:samples] for name in names}


def _piece(path: Path, proto: ModelProto) -> int | None:
    """Returns the batch size that the file holds, at its inputs or inside; ``None`` where it is free."""
    runner = Runner(path, None, True)

    def run(size: int) -> list[NDArray[Any]]:
        sample = runnable(proto, runner.run, batch=size, seed=0, sizes=None)
        return list(runner.run(sample).values())

    return fixed_batch(input_specs(proto)) or batch_inside(proto, run)


def _target(
    path: Path, arrays: Mapping[str, NDArray[Any]], aim: _Aim, loss: str, samples: int, seed: int
) -> NDArray[Any]:
    runner = Runner(path, None, True)
    size = _piece(path, onnx_file.read(path)) or samples
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, samples, size):
        rows = np.minimum(np.arange(start, start + size), samples - 1)
        parts.append(runner.run({name: array[rows] for name, array in arrays.items()}, [aim.value])[aim.value])
    value = np.concatenate(parts)[:samples]
    if len(value) != samples:
        raise ModelError(f"{aim.value!r} has {len(value)} rows for {samples} samples: write the data by hand.")
    if loss == "cross_entropy":
        shape = value.shape[:1] if value.ndim == 2 else value.shape[:-1]
        return np.asarray(rng.integers(0, value.shape[-1], shape, np.int64))
    return value.astype(np.float32)


def _free(name: str, taken: Mapping[str, Any]) -> str:
    while name in taken:
        name += "_"
    return name
