"""The adapter file: safetensors with the trained LAuReL tensors of a model and what they belong to.

It holds ``<site>.w``, ``<site>.A`` ... (:meth:`SiteSpec.parameter_shapes`) and, as metadata, the format version, the
config, what each site is, and fingerprints of the base graph.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import SiteSpec
from .errors import AdapterError, ConfigError
from .formula import resolve
from .opset.schema import tensor_name

FORMAT = "1"
"""Version of the file's metadata; another one is refused."""

Array = NDArray[Any]

_KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
_DTYPES = {kind: dtype for dtype, kind in _KINDS.items()}
_LISTED = 8
"""How many names an error lists of each sort."""


@dataclass(frozen=True)
class Adapter:
    """The trained tensors of all sites of one model.

    Attributes:
        specs: site to what it is.
        tensors: ``<site>.<name>`` to value; bfloat16 as float32.
        base: kind of graph (``onnx``, ``torch``) to the fingerprint of the base graph; empty if unknown.
        config: the config's JSON form, or "".
    """

    specs: dict[str, SiteSpec]
    tensors: dict[str, Array]
    base: dict[str, str]
    config: str = ""

    def parameters(self, site: str) -> dict[str, Array]:
        """Returns the trained tensors of one site by name."""
        return {name: self.tensors[f"{site}.{name}"] for name in self.specs[site].parameter_shapes()}

    def resolved(self) -> dict[str, Array]:
        """Returns the tensors of an ONNX file, ``laurel.<site>.<name>`` to value, in float64."""
        found: dict[str, Array] = {}
        for site, spec in self.specs.items():
            exact = {name: np.asarray(value, np.float64) for name, value in self.parameters(site).items()}
            found.update((tensor_name(site, name), value) for name, value in resolve(spec, exact).items())
        return found


def to_bytes(adapter: Adapter) -> bytes:
    """Returns the file of *adapter*."""
    header: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "config": adapter.config,
            "sites": _pack(adapter.specs),
            "base": _compact(adapter.base),
        }
    }
    data: list[bytes] = []
    end = 0
    for site, spec in adapter.specs.items():
        for name, value in adapter.parameters(site).items():
            data.append(_tensor_bytes(value, spec.dtype))
            start, end = end, end + len(data[-1])
            header[f"{site}.{name}"] = {
                "dtype": _KINDS[spec.dtype],
                "shape": list(value.shape),
                "data_offsets": [start, end],
            }
    text = _compact(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, *data))


def read_adapter(path: str | Path) -> Adapter:
    """Reads an adapter file.

    Raises:
        AdapterError: missing, no safetensors file, no adapter, of another format version, or its tensors are not those
            that its own metadata names.
    """
    import safetensors

    path = Path(path)
    try:
        data = path.read_bytes()
        entries: Any = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except OSError as error:
        raise AdapterError(f"the adapter {path} cannot be read: {error.strerror or error}.") from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise AdapterError(f"{path} is no safetensors file, or is damaged: {error}.") from None
    metadata = header.get("__metadata__") or {}
    if "sites" not in metadata:
        raise AdapterError(f"{path} is no LAuReL adapter: expected a file that save_adapter wrote.")
    if metadata.get("format") != FORMAT:
        raise AdapterError(f"{path} has format {metadata.get('format')!r}; this version reads {FORMAT!r}.")
    try:
        specs = _unpack(metadata["sites"])
        base = dict(json.loads(metadata.get("base") or "{}"))
    except (ValueError, TypeError, KeyError, ConfigError) as error:
        raise AdapterError(f"the metadata of {path} is damaged: {error}.") from error
    values = {name: _array(entry) for name, entry in entries}
    tensors = {name: values[name] for name in header if name in values}
    check_names(f"adapter {path} and its own metadata", shapes_of(specs), {n: v.shape for n, v in tensors.items()})
    return Adapter(specs, tensors, base, metadata.get("config", ""))


def check_names(what: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raises AdapterError that lists the tensors which are missing, extra or of another shape."""
    faults = []
    if missing := [name for name in expected if name not in found]:
        faults.append(f"missing: {listed(missing)}")
    if extra := [name for name in found if name not in expected]:
        faults.append(f"extra: {listed(extra)}")
    wrong = [
        f"{n} has shape {tuple(found[n])}, expected {s}"
        for n, s in expected.items()
        if n in found and tuple(found[n]) != s
    ]
    if wrong:
        faults.append(f"of another shape: {listed(wrong)}")
    if faults:
        raise AdapterError(
            f"{what} do not fit; tensors {'; '.join(faults)}. Transform the model with the adapter's config."
        )


def shapes_of(specs: Mapping[str, SiteSpec]) -> dict[str, tuple[int, ...]]:
    """Returns ``<site>.<name>`` to shape of all trained tensors of *specs*."""
    return {f"{site}.{name}": shape for site, spec in specs.items() for name, shape in spec.parameter_shapes().items()}


def listed(names: Iterable[str]) -> str:
    """Returns the first names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _pack(specs: Mapping[str, SiteSpec]) -> str:
    """The specs as JSON: what all have in common once, then what differs by site."""
    rows = [spec.to_dict() for spec in specs.values()]
    common = {k: v for k, v in rows[0].items() if k != "site" and all(row[k] == v for row in rows)}
    sites = {row.pop("site"): {k: v for k, v in row.items() if k not in common} for row in rows}
    return _compact({"common": common, "sites": sites})


def _unpack(text: str) -> dict[str, SiteSpec]:
    data = json.loads(text)
    return {site: SiteSpec.from_dict({**data["common"], **own, "site": site}) for site, own in data["sites"].items()}


def _tensor_bytes(value: Array, dtype: str) -> bytes:
    if dtype == "bfloat16":
        from .onnx_tensors import round_to_bfloat16

        return (round_to_bfloat16(value).view(np.uint32) >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(value, np.dtype(dtype).newbyteorder("<")).tobytes()


def _array(entry: Mapping[str, Any]) -> Array:
    dtype, shape = _DTYPES.get(entry["dtype"], ""), tuple(entry["shape"])
    if dtype == "bfloat16":
        bits = np.frombuffer(entry["data"], "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    if not dtype:
        raise AdapterError(f"a tensor has element type {entry['dtype']}; expected one of {', '.join(_DTYPES)}.")
    return np.frombuffer(entry["data"], np.dtype(dtype).newbyteorder("<")).reshape(shape)
