"""Adapters of live models: saved, loaded (attached where nothing is), several by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from laurel_graph import outputs
from laurel_graph.adapters import Adapter as File
from laurel_graph.adapters import adapter_of, files_of, read_adapter
from laurel_graph.adapters import load_adapter as load_into
from laurel_graph.adapters.file import to_bytes
from laurel_graph.errors import AdapterError, ModelError, check_order, near
from laurel_graph.outputs.kinds import ADAPTER
from laurel_graph.passes.read_fx.prepare import example_inputs
from laurel_graph.torch_residual.module import laurel_modules, trainable_parameters
from laurel_graph.torch_residual.sharded import whole

from .attach import attached, inputs_of
from .record import RECORD, Record, put_in, records, refuse_merged, take_out, undo

ADAPTER_FILE = "laurel_adapter.safetensors"
"""The adapter's file where a folder is named."""


def save_adapter(model: nn.Module | str | Path, path: str | Path) -> Path:
    """Writes the LAuReL tensors of *model* to *path* (safetensors), aside and renamed; returns the path.

    Of an attached model it is the adapter that is active, with the modules of ``modules_to_save``. Where parameters are
    sharded (``fully_shard``), every process has to call it.

    Args:
        model: an attached, rewritten or imported module (or any module that holds one, as peft's do), or a transformed
            ``.onnx`` file.
        path: the file to write, or a folder, which gets ``laurel_adapter.safetensors``.

    Raises:
        AdapterError: the model has no LAuReL residuals, a value is not finite, or *path* is no path.
        ModelError: the ONNX file cannot be read.
        OutputError: *path* cannot be written, or is a file that is no adapter.
    """
    check_order("save_adapter(model, path)", model, path, ("module", "path"))
    path = Path(path) / ADAPTER_FILE if Path(path).is_dir() else Path(path)
    if isinstance(model, nn.Module):
        refuse_merged(model, "there is no adapter of its base to save")
    read = files_of(model)
    outputs.check_outputs(path, inputs=read, kind=ADAPTER)
    adapter = adapter_of(model)
    found = _records(model) if isinstance(model, nn.Module) else []
    if found:
        holder, record = found[0]
        names = dict(holder.named_parameters())
        saved = {name: _stored(names[name]) for name in record.adapter.saved}
        adapter = replace(adapter, config=record.adapter.config, saved=saved)
    return outputs.write(path, to_bytes(adapter), read)


def load_adapter(
    model: nn.Module,
    path: str | Path,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    check_base: bool = True,
    adapter: str | None = None,
) -> None:
    """Puts the tensors of an adapter file into *model*, in place; nothing changes when they do not fit.

    Where nothing is attached, the adapter's residuals are attached first; so a fresh base of the same class becomes the
    tuned model. In an attached model they take the place of the active adapter's values, or, under another name, are a
    set of their own beside it, which is active then.

    Args:
        model: a fresh base, or an attached, rewritten or imported module, or any module that holds one.
        path: the adapter file, or the folder that holds it.
        args: example inputs for a fresh base, as for :func:`attach`; Hugging Face models need none.
        kwargs: by name.
        check_base: refuse an adapter that was trained on another base, or where that cannot be told.
        adapter: the name of the set of residuals; ``None`` is the active one (``"default"`` in a fresh base).

    Raises:
        AdapterError: not an adapter; tensors missing, extra, of another shape or not finite; sites of another variant,
            or that the model does not have; another base.
        ModelError: a fresh base cannot be looked at, or *model* is no module.
    """
    check_order("load_adapter(model, path)", model, path, ("module", "path"))
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a torch.nn.Module, found {type(model).__name__}; apply_adapter changes ONNX files.")
    path = Path(path) / ADAPTER_FILE if Path(path).is_dir() else Path(path)
    refuse_merged(model, "an adapter of its base does not fit it")
    found = _records(model)
    if not found and laurel_modules(model):
        if adapter is not None:
            raise AdapterError("adapter= names the sets of residuals of an attached model; this one was rewritten.")
        load_into(model, path, check_base=check_base)
        return
    file = read_adapter(path)
    if not found:
        _load_fresh(model, path, file, example_inputs(model, args, kwargs), check_base, adapter or "default")
        return
    holder, record = found[0]
    if adapter is None or adapter == record.active:
        _check_saved(holder, path, file)
        load_into(model, path, check_base=check_base)
        _take_saved(holder, record, file)
    elif adapter in record.adapters:
        before = record.active
        set_adapter(model, adapter)
        try:
            load_adapter(model, path, check_base=check_base)
        except BaseException:
            set_adapter(model, before)
            raise
    else:
        _load_beside(holder, record, path, file, check_base, adapter)


def set_adapter(model: nn.Module, name: str | None = None) -> None:
    """Makes the adapter *name* of an attached model the one that runs and trains.

    Without a name it lets the active one train again, which other libraries freeze when they put their own parameters
    in: after ``peft.get_peft_model(model, ...)`` both train.

    Args:
        model: an attached model, or anything that holds one.
        name: the adapter, as :func:`attach` or :func:`load_adapter` named it.

    Raises:
        AdapterError: there is no such adapter.
        ModelError: nothing is attached.
    """
    for holder, record in records(model, "set"):
        if name is not None and name not in record.adapters:
            raise AdapterError(f"there is no adapter {name!r}.{near(name, record.adapters)}")
        if name is not None and name != record.active:
            take_out(holder, record)
            record.active = name
            put_in(holder, record)
        for residual in laurel_modules(holder).values():
            residual.requires_grad_(True)
        names = dict(holder.named_parameters())
        for saved in record.adapter.saved:
            if saved in names:
                names[saved].requires_grad_(True)


def print_trainable_parameters(model: nn.Module) -> None:
    """Prints one line: how many parameters of *model* train, of how many, in how many tensors."""
    sys.stdout.write(f"{trainable_parameters(model).summary}\n")


# Inside ---------------------------------------------------------------------------------------------------------------


@contextmanager
def adapter_checkpoints(model: nn.Module) -> Iterator[nn.Module]:
    """Lets the trainers of ``transformers`` and TRL write what trains alone into their checkpoints, and resume from it.

    Inside, ``save_pretrained`` leaves the frozen parameters of *model* out, which is what a ``Trainer`` calls for every
    checkpoint; buffers stay, because training may change them. Such a folder completes an attached model of the same
    base (``trainer.train(resume_from_checkpoint=True)``); it is no model by itself.

    Args:
        model: the attached model of ``transformers`` that is trained.

    Raises:
        ModelError: nothing is attached, or the model is none of ``transformers``.
    """
    records(model, "keep")
    refuse_merged(model, "its checkpoints need all its weights")
    if not hasattr(model, "_keys_to_ignore_on_save"):
        raise ModelError(
            f"{type(model).__name__} is no model of transformers, whose trainers alone write checkpoints in this way; "
            "lg.save_adapter(model, path) writes what trains of any model."
        )
    before: Any = model._keys_to_ignore_on_save
    frozen = {name for name, each in model.named_parameters(remove_duplicate=False) if not each.requires_grad}
    model._keys_to_ignore_on_save = frozen.union(before or ())  # type: ignore[assignment]
    try:
        yield model
    finally:
        model._keys_to_ignore_on_save = before


def _records(model: nn.Module) -> list[tuple[nn.Module, Record]]:
    if not any(RECORD in module.__dict__ for module in model.modules()):
        return []
    return records(model, "load")


def _load_fresh(
    model: nn.Module,
    path: Path,
    file: File,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    check_base: bool,
    name: str,
) -> None:
    _check_saved(model, path, file)
    if not inputs[0] and not inputs[1]:
        raise AdapterError(
            f"{path} is for LAuReL residuals, and {type(model).__name__} has none yet: give example inputs (args=, "
            "kwargs=), so that they can be attached, or attach first."
        )
    attached(model, lambda planner: planner.plan_for(file.specs), file.config, inputs, tuple(file.saved), name)
    record: Record = model.__dict__[RECORD]
    try:
        load_into(model, path, check_base=check_base)
    except BaseException:
        undo(model, record)
        raise
    _take_saved(model, record, file)


def _load_beside(holder: nn.Module, record: Record, path: Path, file: File, check_base: bool, name: str) -> None:
    _check_saved(holder, path, file)
    before = record.active
    inputs = example_inputs(holder, *inputs_of(record))
    take_out(holder, record)
    try:
        attached(
            holder, lambda planner: planner.plan_for(file.specs), file.config, inputs, tuple(file.saved), name, record
        )
        try:
            load_into(holder, path, check_base=check_base)
        except BaseException:
            take_out(holder, record)
            del record.adapters[name]
            raise
    except BaseException:
        record.active = before
        put_in(holder, record)
        raise
    _take_saved(holder, record, file)


def _stored(parameter: torch.Tensor) -> tuple[str, Any]:
    value = whole(parameter.detach()).cpu()
    dtype = str(value.dtype).removeprefix("torch.")
    return dtype, (value.float() if dtype == "bfloat16" else value).numpy()


def _check_saved(model: nn.Module, path: Path, file: File) -> None:
    """Raises AdapterError unless the model has the parameters that the adapter brings, in their shapes."""
    names = dict(model.named_parameters())
    for name, (_, value) in file.saved.items():
        if name not in names:
            raise AdapterError(f"adapter {path} brings {name!r}, which the model does not have.{near(name, names)}")
        if tuple(names[name].shape) != value.shape:
            raise AdapterError(
                f"adapter {path} brings {name!r} of shape {value.shape}; the model's is {tuple(names[name].shape)}."
            )


def _take_saved(model: nn.Module, record: Record, file: File) -> None:
    names = dict(model.named_parameters())
    with torch.no_grad():
        for name, (_, value) in file.saved.items():
            record.adapter.base.setdefault(name, names[name].detach().clone())
            names[name].copy_(torch.from_numpy(np.array(value)))
            names[name].requires_grad_(True)
            record.adapter.saved.setdefault(name, None)
