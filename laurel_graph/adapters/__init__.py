"""Saves, loads and applies adapters: the trained LAuReL tensors of a model, by themselves.

Torch modules, imported modules and ONNX files share one file format (:mod:`.file`); ONNX files hold resolved α and β.
An adapter remembers which base it was trained on (:mod:`laurel_graph.fingerprint`) and is never put into another one
unasked. Values that are not finite are neither written nor taken.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import numpy as np

from ..config import SiteSpec
from ..errors import AdapterError, ModelError, check_order
from ..fingerprint import Fingerprint, compare
from ..formula import unresolve
from ..model_folder import folder_files, graph_path, is_folder, rewritten, writes_folder
from ..opset.changed import why_not_trained
from ..opset.schema import METADATA_CONFIG, read_metadata, read_specs, tensor_name
from .file import Adapter, Array, check_finite, check_names, listed, read_adapter, rounded, shapes_of, to_bytes
from .places import moved
from .trained import site_parameters

if TYPE_CHECKING:
    import onnx
    from torch import nn

__all__ = [
    "Adapter",
    "adapter_of",
    "apply_adapter",
    "load_adapter",
    "read_adapter",
    "save_adapter",
    "write_ort_adapter",
]

_FORMATS = (".safetensors", ".onnx_adapter")
"""Endings of adapters, which may lie in a model folder and be replaced there."""

WEIGHTS = "weights"
"""The kind of fingerprint in :attr:`Adapter.base` that torch and ONNX share; older files have digests instead."""
ADVICE = "use the model it was trained on, or pass --no-check-base (in Python check_base=False) if it belongs here"


def save_adapter(model: nn.Module | str | Path, path: str | Path) -> Path:
    """Writes the LAuReL tensors of *model* to *path* (safetensors), aside and renamed; returns the path.

    Args:
        model: a rewritten or imported module (or any module that holds one), or a transformed ``.onnx`` file or folder.
        path: the file to write.

    Raises:
        AdapterError: the model has no LAuReL residuals, or a value is not finite.
        ModelError: the ONNX file cannot be read.
        OutputError: *path* cannot be written, or is a file that is no adapter.
    """
    check_order("save_adapter(model, path)", model, path, ("module", "path"))
    from .. import outputs
    from ..outputs.kinds import ADAPTER

    read = files_of(model)
    outputs.check_outputs(path, inputs=read, kind=ADAPTER)
    return outputs.write(path, to_bytes(adapter_of(model)), read)


def load_adapter(module: nn.Module, path: str | Path, *, check_base: bool = True, match: str = "auto") -> None:
    """Puts the tensors of an adapter file into *module*, in place; nothing changes when they do not fit.

    Args:
        module: a rewritten or imported module, or any module that holds one.
        path: the adapter file.
        check_base: refuse an adapter that was trained on another base, or where that cannot be told.
        match: ``name``; ``place``: the sites of the adapter are those of *module* in the order in which they run; or
            ``auto``: by place, with a warning, where no name agrees and the places agree one to one.

    Raises:
        AdapterError: not an adapter; tensors missing, extra, of another shape or not finite; sites of another variant;
            another base.
    """
    check_order("load_adapter(model, path)", module, path, ("module", "path"))
    import torch

    from ..torch_residual.module import laurel_modules

    adapter = read_adapter(path)
    modules = laurel_modules(module)
    if not modules:
        raise AdapterError(f"{type(module).__name__} has no LAuReL residuals: transform it first.")
    specs = {site: m.spec for site, m in modules.items()}
    adapter = _placed(path, adapter, specs, match)
    _check_fit(path, adapter, specs)
    if check_base:
        from ..fingerprint.digest import module_digests

        _check_base(path, adapter.base, lambda: _module_base(module), lambda: module_digests(module))
    values: list[tuple[torch.Tensor, torch.Tensor]] = []
    for site, laurel in modules.items():
        for name, value in adapter.parameters(site).items():
            parameter: torch.Tensor = laurel.get_parameter(name)
            new = torch.from_numpy(np.array(value)).to(parameter.dtype)
            if not bool(new.isfinite().all()):
                dtype = str(parameter.dtype).removeprefix("torch.")
                raise AdapterError(f"adapter {path}: {site}.{name} overflows in the model's {dtype}.")
            values.append((parameter, new))
    with torch.no_grad():
        for parameter, new in values:
            parameter.copy_(new)


def apply_adapter(
    model: str | Path, adapter: str | Path, output: str | Path, *, check_base: bool = True, match: str = "auto"
) -> Path:
    """Writes a copy of a transformed ONNX file with the tensors of an adapter; returns the path written.

    Only the ``laurel.*`` initializers differ; external weight files stay as they are.

    Args:
        model: a transformed or exported ``.onnx`` file, or a folder with one (:mod:`laurel_graph.model_folder`).
        adapter: the adapter file.
        output: the file or folder to write.
        check_base: refuse an adapter that was trained on another base, or where that cannot be told.
        match: see :func:`load_adapter`.

    Raises:
        AdapterError: as for :func:`load_adapter`; the model has no LAuReL residuals, or they were deployed (folded).
        ModelError: the model cannot be read.
        OutputError: the output cannot be written, or is the input.
    """
    check_order("the transformed model, then its adapter", model, adapter, ("model", "adapter"))
    from .. import onnx_file, outputs
    from ..onnx_model.tensors import array_of, set_tensors
    from ..outputs.kinds import MODEL
    from ..outputs.models import model_files, write_model

    if writes_folder(model, output):
        with rewritten(model, output, inputs=(adapter,)) as new:
            apply_adapter(new.source, adapter, new.graph, check_base=check_base, match=match)
        return new.output
    carried, model = folder_files(model), graph_path(model)
    proto, folder = onnx_file.read_with_records(model), model.parent
    outputs.check_outputs(output, inputs=(adapter, *model_files(model, proto), *carried), kind=MODEL)
    found = read_adapter(adapter)
    specs, held = _specs_of(proto, model)
    found = _placed(adapter, found, specs, match)
    _check_fit(adapter, found, specs)
    if check_base:
        from ..fingerprint.digest import file_digests
        from ..fingerprint.from_onnx import of_model

        _check_base(adapter, found.base, lambda: of_model(proto, folder), lambda: file_digests(proto, folder))
    values = found.resolved()
    set_tensors(proto, values)
    check_finite(f"adapter {adapter} in {model}", {name: array_of(held[name]) for name in values})
    return write_model(proto, output, model, inputs=(adapter,))


def write_ort_adapter(source: nn.Module | str | Path, path: str | Path) -> Path:
    """Writes the resolved tensors in ONNX Runtime's own adapter format, for ``RunOptions.add_active_adapter``.

    The session's model must have them as overridable inputs (``laurel transform --adapter-inputs``).

    Args:
        source: an adapter file, a transformed ``.onnx`` file or a rewritten module.
        path: the ``.onnx_adapter`` file to write.

    Raises:
        AdapterError: *source* has no LAuReL tensors, they are of a type that the format does not hold (bfloat16), or a
            value is not finite.
        OutputError: *path* cannot be written.
    """
    import onnxruntime

    from .. import outputs
    from ..outputs.kinds import ORT_ADAPTER

    is_file = isinstance(source, (str, Path)) and Path(source).suffix != ".onnx" and not is_folder(source)
    read = (Path(source),) if is_file and isinstance(source, (str, Path)) else files_of(source)
    outputs.check_outputs(path, inputs=read, kind=ORT_ADAPTER)
    adapter = read_adapter(source) if is_file and isinstance(source, (str, Path)) else adapter_of(source)
    values = {}
    dtypes = {tensor_name(site, n): spec.dtype for site, spec in adapter.specs.items() for n in spec.tensor_shapes()}
    for name, value in adapter.resolved().items():
        if dtypes[name] == "bfloat16":
            raise AdapterError(f"{name} is bfloat16, which ONNX Runtime's adapter format cannot hold; use float32.")
        array = rounded(value, dtypes[name])
        check_finite("the adapter", {name: array})
        values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
    native = onnxruntime.AdapterFormat()
    native.set_adapter_version(1)
    native.set_model_version(1)
    native.set_parameters(values)

    def export(aside: Path) -> None:
        try:
            native.export_adapter(str(aside))
        except RuntimeError:  # what it raises for a full disk
            raise OSError("ONNX Runtime failed to write it") from None

    return outputs.write(path, export, read)


def files_of(model: nn.Module | str | Path) -> tuple[Path, ...]:
    """Returns the ONNX file *model*, or those that modules in it were imported from, with their weight files."""
    from ..outputs.models import model_files

    if not _is_module(model):
        others = (path for path in folder_files(model) if path.suffix not in _FORMATS)
        return (*model_files(graph_path(cast("str | Path", model))), *others)
    from ..importer import META

    files: list[Path] = []
    for module in model.modules():
        record = getattr(module, "meta", {}).get(META)
        if record is not None and record.source:
            try:
                files += model_files(record.source)
            except ModelError:  # it has moved, or something else lies there now
                files.append(record.source)
    return tuple(files)


def adapter_of(model: nn.Module | str | Path) -> Adapter:
    """Returns the adapter that *model* holds now; see :func:`save_adapter`."""
    if not _is_module(model):
        return _of_file(graph_path(cast("str | Path", model)))
    from ..torch_residual.module import CONFIG

    specs: dict[str, SiteSpec] = {}
    tensors: dict[str, Array] = {}
    for spec, values in site_parameters(model):
        specs[spec.site] = spec
        tensors.update((f"{spec.site}.{name}", value) for name, value in values.items())
    if not specs:
        raise AdapterError(f"{type(model).__name__} has no LAuReL residuals: transform it first.")
    metas: list[Any] = [getattr(m, "meta", {}) for m in model.modules()]
    config = next((str(meta[CONFIG]) for meta in metas if CONFIG in meta), "")
    return Adapter(specs, tensors, {WEIGHTS: _module_base(model).to_text()}, config)


def _is_module(model: nn.Module | str | Path) -> TypeGuard[nn.Module]:
    """Tells torch modules by what they have, without importing torch for files."""
    return callable(getattr(type(model), "modules", None))


def _of_file(path: Path) -> Adapter:
    from .. import onnx_file
    from ..fingerprint.from_onnx import of_model
    from ..onnx_model.tensors import array_of

    proto = onnx_file.read_with_records(path)
    specs, held = _specs_of(proto, path)
    tensors: dict[str, Array] = {}
    for site, spec in specs.items():
        stored = {
            name: np.asarray(array_of(held[tensor_name(site, name)], path.parent), np.float64)
            for name in spec.tensor_shapes()
        }
        tensors.update((f"{site}.{name}", value) for name, value in unresolve(spec, stored).items())
    config = read_metadata(proto, METADATA_CONFIG) or ""
    return Adapter(specs, tensors, {WEIGHTS: of_model(proto, path.parent).to_text()}, config)


def _specs_of(proto: onnx.ModelProto, path: str | Path) -> tuple[dict[str, SiteSpec], dict[str, onnx.TensorProto]]:
    """The sites of a transformed file and its initializers by name, which hold all tensors of the sites."""
    if why := why_not_trained(proto):
        raise AdapterError(f"{path}: {why}")
    specs = read_specs(proto)
    if not specs:
        raise AdapterError(
            f"{path} has no LAuReL residuals: expected a file that laurel transform or export_onnx wrote."
        )
    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    shapes = {
        tensor_name(site, name): shape for site, spec in specs.items() for name, shape in spec.tensor_shapes().items()
    }
    gone = [name for name in shapes if name not in held]
    if gone:
        raise AdapterError(
            f"{path} does not hold {listed(gone)} any more: a tool changed it; use the file from before."
        )
    check_names(f"{path} and its own metadata", shapes, {name: tuple(held[name].dims) for name in shapes})
    return specs, held


def _module_base(module: nn.Module) -> Fingerprint:
    """The fingerprint of a module's base: kept from the import, without what trains; of its weights otherwise."""
    from ..fingerprint.from_torch import of_module
    from ..torch_residual.import_record import META

    for part in module.modules():
        record = getattr(part, "meta", {}).get(META)
        if record is not None:
            trained = {record.tensors.get(path) for path, p in part.named_parameters() if p.requires_grad}
            base: Fingerprint = record.base
            return base.without(trained)
    return of_module(module)


def _placed(path: str | Path, adapter: Adapter, specs: Mapping[str, SiteSpec], match: str) -> Adapter:
    """Returns the adapter under the model's site names; warns where they are not its own."""
    placed = moved(adapter, specs, match)
    if placed is not adapter:
        ends = [f"{a} is {b}" for a, b in zip(adapter.specs, specs, strict=True)]
        warnings.warn(
            f"adapter {path} names its sites otherwise than the model: its {len(ends)} sites were matched by place, "
            f"{ends[0]}{f' to {ends[-1]}' if len(ends) > 1 else ''}.",
            stacklevel=3,
        )
    return placed


def _check_fit(path: str | Path, adapter: Adapter, specs: Mapping[str, SiteSpec]) -> None:
    """Raises AdapterError when tensors are missing, extra or wrong-shaped, or sites are of another kind."""
    check_names(f"adapter {path} and the model", shapes_of(specs), {n: v.shape for n, v in adapter.tensors.items()})
    fields = ("variant", "axis", "weights", "previous_map", "options")
    other = [
        f"{site} ({field}: {getattr(adapter.specs[site], field)!r}, the model has {getattr(spec, field)!r})"
        for site, spec in specs.items()
        for field in fields
        if getattr(adapter.specs[site], field) != getattr(spec, field)
    ]
    if other:
        raise AdapterError(f"adapter {path} is of another kind than the model at {listed(other)}.")


def _check_base(
    path: str | Path,
    expected: Mapping[str, str],
    weights: Callable[[], Fingerprint],
    digests: Callable[[], Mapping[str, str]],
) -> None:
    """Raises AdapterError unless the adapter was trained on this base; warns where an older file cannot tell.

    Args:
        path: the adapter.
        expected: what it says about its base.
        weights: gives the fingerprint of the model's base.
        digests: gives the model's fingerprints of the older kinds.
    """
    if WEIGHTS in expected:
        try:
            trained_on = Fingerprint.from_text(expected[WEIGHTS])
        except ValueError as error:
            raise AdapterError(f"the base of adapter {path} cannot be read: {error}; {ADVICE}.") from None
        verdict = compare(trained_on, weights())
        if verdict.answer == "other":
            raise AdapterError(f"adapter {path} was trained on another base: {verdict.reason}; {ADVICE}.")
        if verdict.answer == "unknown":
            raise AdapterError(
                f"whether adapter {path} was trained on this base cannot be told: {verdict.reason}; {ADVICE}."
            )
        return
    found = digests()
    kinds = [kind for kind in expected if kind in found]
    if not kinds:
        warnings.warn(
            f"the base of adapter {path} could not be checked: an older version wrote it, for "
            f"{' and '.join(expected) or 'no'} graphs; save it again from the model it was trained on.",
            stacklevel=3,
        )
    elif not any(expected[kind] == found[kind] for kind in kinds):
        raise AdapterError(
            f"adapter {path} was trained on another base: expected the {kinds[0]} graph with fingerprint "
            f"{expected[kinds[0]][:16]}, found {found[kinds[0]][:16]}; {ADVICE}."
        )
