"""``laurel finetune``: train the LAuReL tensors of a transformed ONNX file, and write the tuned file and its adapter.

The file is imported as a differentiable torch module in which only the LAuReL tensors (and what ``train`` names)
are parameters; :mod:`.loop` trains it; the trained tensors are put back into the file, every other
byte of the graph staying as it was. The result is then run on ONNX Runtime and held against the module.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from laurel_graph import onnx_file, runtime
from laurel_graph.adapters.trained import trained_tensors
from laurel_graph.errors import ConfigError, DataError, TrainingError, VerificationError
from laurel_graph.model_folder import graph_path, rewritten, writes_folder
from laurel_graph.onnx_model.walk import copy_of
from laurel_graph.opset.changed import why_not_trained
from laurel_graph.opset.parameters import weights_of
from laurel_graph.opset.schema import read_specs, tensor_name
from laurel_graph.outputs import check_outputs, staged
from laurel_graph.outputs.folder import check_folder
from laurel_graph.outputs.kinds import ADAPTER, MODEL, ORT_ADAPTER
from laurel_graph.outputs.models import stage_model
from laurel_graph.passes.rewrite.head import PREFIX as HEAD
from laurel_graph.passes.rewrite.head import producers, with_output
from laurel_graph.tools.callables import is_reference
from laurel_graph.tools.inputs import finetune_files

from . import causal, onnx_task
from .agreement import compare
from .data import Data, fit_to_inputs, split
from .data_files import read_data
from .forms.tables import scale_bytes, shaped
from .options import FinetuneOptions, with_existing
from .training.report import FinetuneReport

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import fx

    from laurel_graph.config import SiteSpec
    from laurel_graph.tools.finetuning.training.state import TrainResult

    from .task import Task

Array = NDArray[Any]
TEACHER = "teacher"
"""Name of the array that holds the teacher's outputs."""
_LISTED = 8
"""Classes that a sentence names."""
CHECKED_SAMPLES = 8
"""Samples on which the tuned file is held against the module."""


def _is_ort(adapter: Path | None) -> bool:
    return adapter is not None and adapter.suffix == ".onnx_adapter"


def finetune(options: FinetuneOptions) -> FinetuneReport:
    """Trains the LAuReL tensors of an ONNX file and writes the tuned file.

    Started by torchrun or ``accelerate launch``, the processes share each batch; the first one writes the files.

    Raises:
        ModelError: the file cannot be read, or has no such output.
        ConfigError: an option has a value outside its domain, or the file is not transformed.
        DataError: the data cannot be read or does not fit the model or the loss.
        UnsupportedOperatorError: the graph has operators without a differentiable counterpart.
        TrainingError: see :func:`laurel_graph.tools.finetuning.training.loop.train`.
        VerificationError: a tensor of the base changed, or the tuned file computes something else than the module.
        OutputError: a file cannot be written.
    """
    began = time.perf_counter()
    model = onnx_file.read_with_records(graph_path(options.model))
    read = finetune_files(options, model)
    if writes_folder(options.model, options.tuned):
        check_folder(options.tuned, (options.model, *read))
        check_outputs(options.adapter, options.checkpoint, inputs=read)
    else:
        check_outputs(options.tuned, options.adapter, options.checkpoint, inputs=read)
        check_outputs(options.tuned, kind=MODEL)
    check_outputs(options.adapter, kind=ORT_ADAPTER if _is_ort(options.adapter) else ADAPTER)
    specs = read_specs(model)
    options = with_existing(options, model)
    if not (options.train or options.head) and (why := why_not_trained(model)):
        raise ConfigError(f"{options.model} has no LAuReL tensors to train: {why}")
    if not (specs or options.train or options.head):
        raise ConfigError(
            f"{options.model} has no LAuReL tensors to train: run `laurel transform` first, or name initializers "
            "with --train or a new head with --head."
        )
    run = _Run(options, model, specs, read)
    from laurel_graph.tools.finetuning.training.checkpoint import check_replaced
    from laurel_graph.tools.finetuning.training.loop import train
    from laurel_graph.tools.finetuning.training.scalars import check_tensorboard

    check_replaced(options.checkpoint, options.resume)
    check_tensorboard(options.tensorboard)
    run.read()
    module = run.importing()
    training = train(module, run.task, run.data, run.validation, options)
    return run.finish(module, training, began)


class _Run:
    """One fine-tuning: what was read, what is trained, what is written."""

    def __init__(
        self, options: FinetuneOptions, model: ModelProto, specs: Mapping[str, SiteSpec], files: tuple[Path, ...]
    ) -> None:
        self.options, self.model, self.specs, self.files = options, model, specs, files
        self.graph = graph_path(options.model)
        self.base_dir = self.graph.parent
        self.inputs = onnx_task.input_specs(model)
        self.notes: list[str] = []

    def read(self) -> None:
        """Reads the data, holds it against the model, and decides what is trained on."""
        options = self.options
        self.data, self.validation = self._read_both()
        names = [spec.name for spec in self.inputs]
        self.pairs = bool(names) and all(name + ".2" in self.data.names for name in names)
        for data in filter(None, (self.data, self.validation)):
            if options.scale is not None:
                scale_bytes(data, self.inputs, options.scale, options.mean, options.std)
            for suffix in ("", ".2") if self.pairs else ("",):
                for line in fit_to_inputs(data, self.inputs, suffix):
                    warnings.warn(line, stacklevel=2)  # before the training, not behind it
        for line in dict.fromkeys(line for data in (self.data, self.validation) if data for line in data.notes):
            warnings.warn(line, stacklevel=2)
        if (odd := options.odd_rate()) is not None:
            warnings.warn(odd, stacklevel=2)
        self.fixed_batch = onnx_task.fixed_batch(self.inputs) or self._batch_inside()
        output = options.output
        if output is None and options.loss == "causal_lm":
            output = causal.logits_of(self.model)
        self.trained = onnx_task.choose_value(
            self.model, options.loss, output, options.head, self._feeds(self.data, [0]), self.base_dir
        )
        self.notes += self.trained.notes
        target = self._target()
        self._check_classes(target)
        used = {*names, *(f"{name}.2" for name in names if self.pairs), target}
        if unused := [name for name in self.data.names if name not in used and not is_reference(options.loss)]:
            self.notes.append(f"{self.data.source}: not used: {', '.join(unused)}.")
        self.task = self._task(tuple(names), target)

    def _batch_inside(self) -> int | None:
        """Returns the one batch size that the file takes where its inputs leave it open and constants inside do not."""

        def run(size: int) -> list[Array]:
            batch = self.data.batch([i % len(self.data) for i in range(size)])
            feeds = {spec.name: batch[spec.name] for spec in self.inputs}
            return onnx_task.run(self.model, [info.name for info in self.model.graph.output], feeds, self.base_dir)

        size = onnx_task.batch_inside(self.model, run)
        if size is not None:
            self.notes.append(
                f"constants inside the file hold a batch of {size}: the data is cut into pieces of that size."
            )
        return size

    def _read_both(self) -> tuple[Data, Data | None]:
        options = self.options
        data = self._read_data(options.data)
        if options.validation is None:
            return data, None
        try:
            fraction = float(options.validation)
        except ValueError:
            return data, self._read_data(options.validation, data.classes)
        return split(data, fraction, options.seed)

    def _read_data(self, source: str, known: Mapping[str, tuple[str, ...]] | None = None) -> Data:
        if self.options.loss == "causal_lm":
            return causal.read_tokens(source, self.options, self.model, self.inputs)
        data = shaped(read_data(source, self.inputs, known), self.inputs, self.options.target, known)
        for name, classes in data.classes.items():
            if classes != (known or {}).get(name, classes):
                raise DataError(f"{source}: the classes of {name!r} are other ones than those of the training data.")
        return data

    def _check_classes(self, target: str) -> None:
        """Says which number a class has, and refuses classes that are not as many as the output's.

        Raises:
            DataError: class names stand for other numbers than those of the output then.
        """
        classes = self.data.classes.get(target)
        if not classes:
            return
        listed = ", ".join(f"{number} is {name}" for number, name in list(enumerate(classes))[:_LISTED])
        self.notes.append(f"{target!r}: {listed}{', ...' if len(classes) > _LISTED else ''}.")
        if self.options.loss == "cross_entropy":
            feeds = self._feeds(self.data, [0])
            shape = onnx_task.value_shape(self.trained.imported, self.trained.value, feeds, self.base_dir)
            if len(shape) == 2 and shape[1] != len(classes):
                raise DataError(
                    f"{self.data.source}: {target!r} has {len(classes)} classes ({', '.join(classes[:_LISTED])}), but "
                    f"{self.trained.value!r} has {shape[1]}, so that their numbers mean something else there: put a "
                    f"new head on the model with --head {len(classes)}, or give the model's own numbers."
                )

    def _feeds(self, data: Data, indices: list[int]) -> dict[str, Array]:
        """Returns the model's inputs for some samples, filled up to a fixed batch."""
        if self.fixed_batch is not None:
            indices = (indices * self.fixed_batch)[: self.fixed_batch]
        batch = data.batch(indices)
        return {spec.name: batch[spec.name] for spec in self.inputs}

    def _target(self) -> str:
        options, names = self.options, {spec.name for spec in self.inputs}
        if options.loss == "distill":
            self.data = self._with_teacher(self.data)
            self.validation = self.validation and self._with_teacher(self.validation)
            return TEACHER
        target = options.target
        if target is None:
            others = [name for name in self.data.names if name not in names and name.removesuffix(".2") not in names]
            if len(others) != 1:
                if is_reference(options.loss) and not others:
                    return ""
                if not others:
                    raise DataError(
                        f"{self.data.source}: expected the target beside the inputs, as in numpy.savez(FILE, "
                        f"{', '.join(f'{name}=...' for name in sorted(names))}, label=...); it holds no usable array "
                        f"that is not an input{self.data.unusable()}."
                    )
                raise DataError(
                    f"{self.data.source}: name the target's array with --target; it holds {', '.join(others)}."
                )
            target = others[0]
        for data in filter(None, (self.data, self.validation)):
            data.require(target, "target")
        return target

    def _with_teacher(self, data: Data) -> Data:
        """Returns *data* with the teacher's output on every sample."""
        teacher, value = self._teacher()
        folder = graph_path(self.options.teacher or self.options.model).parent
        session = onnx_task.make_session(teacher, folder)
        step = self.fixed_batch or self.options.batch_size
        parts = []
        for start in range(0, len(data), step):
            indices = list(range(start, min(start + step, len(data))))
            given = indices + indices[-1:] * (self.fixed_batch - len(indices) if self.fixed_batch else 0)
            given_out = runtime.run(session, self._feeds(data, given), [value], "the teacher")[0]
            parts.append(given_out[: len(indices)])
        feeds = self._feeds(data, list(range(len(parts[0]))))
        own = onnx_task.run(self.trained.imported, [self.trained.value], feeds, self.base_dir)[0][: len(parts[0])]
        if own.shape == parts[0].shape and np.abs(own - parts[0]).max() <= 1e-5 * np.abs(parts[0]).max():
            raise TrainingError(
                "the model already equals its teacher, so there is nothing to learn: name another one with --teacher."
            )
        return data.with_array(TEACHER, np.concatenate(parts))

    def _teacher(self) -> tuple[ModelProto, str]:
        """Returns the teacher, by default the model without its LAuReL residuals, and the value to aim at."""
        from laurel_graph.passes.pipeline import remove

        path, value = self.options.teacher, self.trained.value
        if path is not None:
            teacher = onnx_file.read(graph_path(path))
        else:
            teacher = remove(self.model) if self.specs else self.model
        outputs = [info.name for info in teacher.graph.output]
        if len(outputs) == 1 and value not in producers(teacher.graph.node):
            return teacher, outputs[0]
        probe = copy_of(teacher)
        with_output(probe, value)
        return probe, value

    def _task(self, names: tuple[str, ...], target: str) -> Task:
        from .losses import build_loss, build_metric
        from .task import Task

        options = self.options
        loss = build_loss(options.loss, target, self.pairs)
        metric = build_metric(options.metric, options.loss, loss, target, self.pairs)
        index = [info.name for info in self.trained.imported.graph.output].index(self.trained.value)
        return Task(names, loss, metric, index, pairs=self.pairs, fixed_batch=self.fixed_batch)

    def importing(self) -> fx.GraphModule:
        """Returns the differentiable module."""
        from laurel_graph.importer import import_onnx

        sites = self.specs.items()
        ours = [escape(tensor_name(site, name)) for site, spec in sites for name in spec.parameter_shapes()]
        head = [f"{HEAD}.weight", f"{HEAD}.bias"] if self.options.head else []
        whole = onnx_task.loaded(self.trained.imported, self.base_dir)
        return import_onnx(whole, trainable=[*ours, *head, *self.options.train], dropout=self.options.dropout)

    def finish(self, module: fx.GraphModule, training: TrainResult, began: float) -> FinetuneReport:
        """Checks the files and writes them."""
        from accelerate import PartialState

        state = PartialState()
        values = trained_tensors(module)
        tuned = copy_of(self.trained.model)
        for name, array in values.items():
            onnx_file.set_tensor(tuned, name, array)
        changed = set(onnx_task.changed_tensors(self.trained.model, tuned)) - set(values)
        if changed:
            raise VerificationError(f"the base changed: {', '.join(sorted(changed)[:5])}; nothing was written.")
        difference, notes = self._agreement(module, tuned)
        self.notes += notes
        if state.is_main_process:
            self._write(tuned)
        state.wait_for_everyone()
        return self._report(tuned, values, training, difference, time.perf_counter() - began)

    def _write(self, tuned: ModelProto) -> None:
        """Writes the tuned file or folder and the adapter, and ends the run's state."""
        options = self.options
        if writes_folder(options.model, options.tuned):
            with rewritten(options.model, options.tuned, inputs=self.files) as new:
                self._write_file(tuned, new.graph)
            self.notes += new.notes
        else:
            self._write_file(tuned, options.tuned)
        assert options.checkpoint is not None
        options.checkpoint.unlink(missing_ok=True)

    def _write_file(self, tuned: ModelProto, path: Path) -> None:
        """Writes the tuned file and the adapter; the first is loaded from the disk before either is there."""
        from laurel_graph.adapters import save_adapter, write_ort_adapter

        options = self.options
        with staged(path, self.files) as aside:
            stage_model(aside, tuned, self.base_dir)
            if onnx_task.changed_tensors(tuned, onnx_file.read(aside.path)):
                raise VerificationError(f"{options.tuned} does not hold what was written to it.")
            onnx_task.make_session(aside.path, aside.path.parent)
            if options.adapter is not None:
                save = write_ort_adapter if _is_ort(options.adapter) else save_adapter
                save(aside.path, options.adapter)
            aside.publish()

    def _agreement(self, module: fx.GraphModule, tuned: ModelProto) -> tuple[float, list[str]]:
        """Returns how far the tuned graph on ONNX Runtime is from the module, and sentences for the user."""
        data = self.validation or self.data
        feeds = self._feeds(data, list(range(min(CHECKED_SAMPLES, len(data)))))
        mask = feeds.get(causal.MASK) if self.options.loss == "causal_lm" else None
        return compare(module, self.task, tuned, self.trained.value, feeds, self.base_dir, mask)

    def _report(
        self, tuned: ModelProto, values: Mapping[str, Array], training: TrainResult, difference: float, seconds: float
    ) -> FinetuneReport:
        floats = onnx_task.float_sizes(tuned)
        new = sum(spec.parameter_count() for spec in self.specs.values())
        head = sum(size for name, size in floats.items() if self.options.head and name.startswith(f"{HEAD}."))
        further = sum(array.size for name, array in values.items() if not _is_new(name, bool(self.options.head)))
        ours = {tensor_name(site, name) for site, spec in self.specs.items() for name in spec.tensor_shapes()}
        base = sum(size for name, size in weights_of(tuned) if name not in values and name not in ours)
        notes = [*self.notes, *training.notes]
        if training.best_epoch == 0:
            notes.append("no epoch was better on the validation data than the start: the tuned file is the start.")
        if head and self.options.adapter is not None:
            notes.append("the adapter holds the LAuReL tensors; the head is in the tuned file alone.")
        parts = len(tuned.graph.node) + len(tuned.graph.initializer) - len(values)
        return FinetuneReport(
            model=str(self.options.model),
            tuned=str(self.options.tuned),
            adapter=None if self.options.adapter is None else str(self.options.adapter),
            value=self.trained.value,
            new_parameters=new,
            head_parameters=head,
            further_parameters=further,
            base_parameters=base,
            training=training,
            difference=difference,
            unchanged=parts,
            seconds=seconds,
            notes=tuple(notes),
        )


def _is_new(name: str, head: bool) -> bool:
    return name.startswith("laurel.") or (head and name.startswith(f"{HEAD}."))


def with_changes(options: FinetuneOptions, **changes: Any) -> FinetuneOptions:
    """Returns *options* with other values; a default checkpoint follows the file to write."""
    if "tuned" in changes and "checkpoint" not in changes:
        changes["checkpoint"] = None
    return replace(options, **changes)
